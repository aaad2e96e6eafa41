"""A process and all that it started, at any depth, whatever sessions and groups those have made for themselves.

Linux lists the children of each thread under /proc, so that nobody has to look through all processes of the machine.
Where a kernel does not (CONFIG_PROC_CHILDREN), the process itself is all that counts.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pid: int) -> int:
    """Resident memory of the process and of all below it; what they share counts for each."""
    return sum(map(_resident, (pid, *_descendants(pid))))


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    pending = [pid]
    while pending:
        children = _children(pending.pop())
        found += children
        pending += children
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):  # it has ended
        for thread in (_PROC / str(pid) / "task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (thread / "children").read_text().split())
    return found


def _resident(pid: int) -> int:
    try:
        return int((_PROC / str(pid) / "statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):  # it has ended, or is about to
        return 0
