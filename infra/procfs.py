"""Processes as Linux shows them under /proc: identity, kinship, memory.

A process id alone is no identity, since the kernel gives it out again. Identity is (pid, start time, boot).
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Process:
    """One line of /proc: ``started`` is in clock ticks since boot, ``rss`` in bytes, ``cpu_ticks`` used so far."""

    pid: int
    parent: int
    group: int
    session: int
    started: int
    rss: int
    zombie: bool
    cpu_ticks: int


def look_at_process(pid: int) -> Process | None:
    """The process of that id, or None where there is none (any more)."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # Field 2 is the name in brackets and may itself hold spaces and brackets: count from the last one. proc(5).
    fields = text[text.rindex(")") + 2 :].split()
    return Process(
        pid=pid,
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        started=int(fields[19]),
        rss=int(fields[21]) * _PAGE,
        zombie=fields[0] in "ZX",
        cpu_ticks=int(fields[11]) + int(fields[12]),
    )


def everyone() -> list[Process]:
    """All live processes, zombies left out: a zombie holds neither memory nor ports."""
    pids = (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())
    return [found for pid in pids if (found := look_at_process(pid)) is not None and not found.zombie]


def marked(pid: int, prefix: str) -> str | None:
    """What follows ``NAME=prefix`` in the environment that the process was started with.

    None where no variable begins so, and for other users' processes.
    """
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return None
    for setting in environment.split(b"\0"):
        if setting.startswith(prefix.encode()):
            return setting[len(prefix) :].decode(errors="replace")
    return None


def runnable(pid: int) -> bool:
    """Whether a thread of the process has a core or waits for one, at this moment."""
    with contextlib.suppress(OSError):
        for task in (_PROC / str(pid) / "task").iterdir():
            with contextlib.suppress(OSError):  # a thread that ended meanwhile
                text = (task / "stat").read_text(errors="replace")
                if text[text.rindex(")") + 2] == "R":
                    return True
    return False


def boot_id() -> str:
    """Changes with every boot, so that a start time of the last boot matches nothing."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def listening_pid(port: int) -> int | None:
    """Who listens on the TCP port; None where nobody does, or a process that we may not look into."""
    inodes = {
        f"socket:[{fields[9]}]"
        for table in ("tcp", "tcp6")
        for fields in _rows(_PROC / "net" / table)
        if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port
    }
    for process in everyone() if inodes else []:
        if _sockets(process.pid) & inodes:
            return process.pid
    return None


def name(pid: int) -> str:
    """The process's short name; empty where it is gone."""
    try:
        return (_PROC / str(pid) / "comm").read_text().strip()
    except OSError:
        return ""


def _sockets(pid: int) -> set[str]:
    """Names of the process's open files; empty for other users' processes."""
    found = set()
    with contextlib.suppress(OSError):
        for entry in (_PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                found.add(os.readlink(entry))  # noqa: PTH115 - a socket is no path
    return found


def _rows(table: Path) -> list[list[str]]:
    try:
        return [line.split() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return []
