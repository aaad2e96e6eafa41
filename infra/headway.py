"""Whether a process that is starting gets on: it writes to its log, it computes, or it waits for a core."""

from __future__ import annotations

import os
import time

from infra import procfs
from infra.daemon import Daemon

_LOOK_SECONDS = 1.0
_TICKS = os.sysconf("SC_CLK_TCK")
_BUSY = 0.1
"""Share of a core that counts as work: servers that wait for something use less for their timers."""


class Headway:
    """Watches a component from its start on.

    Args:
        patience: seconds without work after which it stands still.
    """

    def __init__(self, daemon: Daemon, patience: float) -> None:
        self._daemon, self._patience = daemon, patience
        self._looked = self._worked = time.monotonic()
        self._cpu, self._log, self._runnable = 0.0, self._size(), False

    def stands_still(self) -> bool:
        """Whether it has done nothing for so long. To be asked again and again; looks once a second."""
        now = time.monotonic()
        elapsed = now - self._looked
        if elapsed >= _LOOK_SECONDS:
            # Of children that ended meanwhile nothing is left to count: less than before is no work.
            members, log = self._daemon.members(), self._size()
            cpu = sum(process.cpu_ticks for process in members) / _TICKS
            # Beside others of a higher priority it may get next to nothing. Once may be chance: timers run out.
            runnable = any(procfs.runnable(process.pid) for process in members)
            if log > self._log or cpu - self._cpu > _BUSY * elapsed or (runnable and self._runnable):
                self._worked = now
            self._looked, self._cpu, self._log, self._runnable = now, cpu, log, runnable
        return now - self._worked > self._patience

    def _size(self) -> int:
        try:
            return self._daemon.log_file.stat().st_size
        except FileNotFoundError:
            return 0
