"""Who holds a lease or began a release: one process, told apart from a later process with the same pid."""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path

from model_registry.variant import Frozen


class Owner(Frozen):
    """One process of one machine.

    ``space`` is the boot id and the pid namespace: a pid means something only where both are equal (two containers
    may share a host name, and a machine that was started again counts pids afresh). ``started`` is the process's start
    in clock ticks since boot, so that a pid used again is not taken for its former process.
    """

    host: str
    space: str
    pid: int
    started: int

    @classmethod
    def current(cls) -> Owner:
        """This process."""
        pid = os.getpid()
        return cls(host=socket.gethostname(), space=_space(), pid=pid, started=_started(pid) or 0)

    def provably_dead(self) -> bool:
        """True only when the process belonged to this very pid namespace and is gone; an unknown one may live."""
        return self.space != "" and self.space == _space() and _started(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@functools.cache
def _space() -> str:
    """Empty where the system does not tell (no /proc): then no owner is ever provably dead."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """Start of a live process in clock ticks since boot (proc(5), field 22); None for none and for a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # the name, in parentheses, may hold blanks and parentheses
    return None if fields[0] in {"Z", "X"} else int(fields[19])
