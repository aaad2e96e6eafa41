"""A virtual environment for each peer, made once: their dependencies and ours do not mix."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REQUIREMENTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "nncf": (("nncf==3.4.*", "onnx", "onnxruntime"),),
    # torch first and alone, of the build that the index gives; Olive 0.13 imports requests and does not require it.
    "olive": (("torch==2.13.0",), ("olive-ai==0.13.*", "onnx", "onnxruntime", "requests")),
}
"""By peer, what is installed in turn; onnx and onnxruntime are the newest that the peer accepts."""


def environment(peer: str, folder: Path) -> Path:
    """The Python of the peer's environment, installed where it is not there yet.

    Raises:
        CalledProcessError: pip fails; its messages are above.
    """
    home = folder / peer
    python, finished = home / "bin" / "python", home / ".finished"
    if not finished.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        for packages in REQUIREMENTS[peer]:
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        finished.touch()
    return python


def quiet(home: Path) -> dict[str, str]:
    """Environment variables: one thread, a home folder of its own, and no telemetry."""
    home.mkdir(parents=True, exist_ok=True)
    outside = {"HOME": str(home), "XDG_CACHE_HOME": str(home), "CI": "true", "OLIVE_DISABLE_TELEMETRY": "1"}
    return {**os.environ, **outside, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
