"""Prefect's worker with a temporary folder of its own: ``python -m infra.worker_process FOLDER worker start ...``.

It makes folders for itself and for each of its runs, some of which hold the run's environment with its keys, and a
killed one leaves them. What lies in the folder when a worker starts is its predecessor's, and goes. Its runs have the
temporary folder of everybody: TMPDIR would reach them.
"""

from __future__ import annotations

import runpy
import shutil
import sys
import tempfile
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Become ``python -m prefect`` with the other arguments."""
    folder = Path(arguments[0])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    tempfile.tempdir = str(folder)
    sys.argv = ["prefect", *arguments[1:]]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
