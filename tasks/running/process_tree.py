"""A process and all that it started, at any depth, whatever sessions and groups those have made for themselves.

Linux lists the children of each thread under /proc, so that nobody has to look through all processes of the machine.
Where a kernel does not (CONFIG_PROC_CHILDREN), the process itself is all that counts.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

_PROC = Path("/proc")


def resident_bytes(pid: int) -> int:
    """Resident memory of the process and of all below it, without what lies in files and can be read again from there
    (libraries, mapped data): the system takes that away when it needs the room. What they share counts for each."""
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
        sizes = dict(line.split(":", 1) for line in (_PROC / str(pid) / "status").read_text().splitlines())
        return sum(1024 * int(sizes[name].split()[0]) for name in ("RssAnon", "RssShmem"))
    except (OSError, KeyError):  # it has ended, or is about to
        return 0
