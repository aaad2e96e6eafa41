"""Keeps the logs of the stack's services short while they run: a small process beside them.

A service holds its log open, so that a file moved away would go on growing under its new name. It is copied to
``.log.1`` and emptied instead: all of them append (O_APPEND), and go on at the new end. Run as a script by
``winnow up``; it imports nothing but the standard library, and wakes up every few seconds.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

MOST_BYTES = 16 * 1024 * 1024
"""A log longer than this becomes ``.log.1``, and what was that before is gone."""
_EVERY_SECONDS = 10.0
_CHUNK = 1 << 20


def shorten_log(log: Path, most: int = MOST_BYTES) -> bool:
    """Move the content of a longer log to ``.log.1``, whoever writes to it; returns whether it was longer.

    What is written in the microseconds between the last read and the truncation is lost.
    """
    try:
        if log.stat().st_size <= most:
            return False
    except FileNotFoundError:
        return False
    older, partial = log.with_suffix(".log.1"), log.with_suffix(".log.partial")
    with log.open("r+b", buffering=0) as source, partial.open("wb") as copy:
        end = log.stat().st_size  # its writer may be quicker than we are
        source.seek(max(0, end - most))
        while chunk := source.read(_CHUNK):
            copy.write(chunk)
        source.truncate(0)
    partial.replace(older)
    return True


def main(arguments: list[str]) -> int:
    """Look after ``*.log`` in a folder for as long as there is one."""
    folder = Path(arguments[0])
    os.nice(5)
    while folder.is_dir():
        for log in folder.glob("*.log"):
            with contextlib.suppress(OSError):  # a full disk: the next round may find room
                shorten_log(log)
        time.sleep(_EVERY_SECONDS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
