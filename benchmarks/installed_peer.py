"""A virtual environment for a peer, made once: its dependencies and ours do not mix."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path


def installed(home: Path, requirements: Iterable[Sequence[str]], interpreter: str = sys.executable) -> Path:
    """The Python of the environment in that folder, installed where it is not there yet.

    Args:
        requirements: packages that are installed together, in turn.
        interpreter: whose Python the environment has.

    Raises:
        CalledProcessError: pip fails; its messages are above.
    """
    python, finished = home / "bin" / "python", home / ".finished"
    if not finished.exists():
        subprocess.run([interpreter, "-m", "venv", "--clear", str(home)], check=True)
        for packages in requirements:
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        finished.touch()
    return python
