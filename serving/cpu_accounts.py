"""CPU time and memory of engine processes, by version, read from /proc when somebody asks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

from serving.engines.engine_link import EngineLink
from serving.loaded_version import LoadedVersion

_TICK = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_USER, _SYSTEM, _RESIDENT = 11, 12, 21
"""Fields of /proc/PID/stat behind the name (proc_pid_stat(5), less 3)."""


class ProcessUse(NamedTuple):
    """CPU seconds since its start, and bytes of memory that it has now, those it shares with others included."""

    cpu_seconds: float
    resident_bytes: int


class VersionUse(NamedTuple):
    """Of a version's engine processes: CPU seconds in all, those of them that answered requests, memory now."""

    cpu_seconds: float
    serving_seconds: float
    resident_bytes: int


def process_use(pid: int) -> ProcessUse | None:
    """What a process uses; None where it is gone, or where there is no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    ticks = int(fields[_USER]) + int(fields[_SYSTEM])
    return ProcessUse(ticks * _TICK, int(fields[_RESIDENT]) * _PAGE_BYTES)


class CpuAccounts:
    """Adds up what the engines of each version used; of one that died what it had used when it was last looked at."""

    def __init__(self) -> None:
        self._accounts: WeakKeyDictionary[LoadedVersion, _Account] = WeakKeyDictionary()

    def use(self, version: LoadedVersion) -> VersionUse | None:
        """None for a version that runs in this process: its share of it is not known."""
        engines = version.engines
        if any(engine.pid == os.getpid() for engine in engines):
            return None
        return self._accounts.setdefault(version, _Account()).look(engines)


class _Account:
    def __init__(self) -> None:
        self._cpu_seconds = self._loading_seconds = 0.0
        """Of engines that are gone."""
        self._last: dict[EngineLink, float] = {}

    def look(self, engines: list[EngineLink]) -> VersionUse:
        for gone in self._last.keys() - set(engines):
            self._cpu_seconds += self._last.pop(gone)
            self._loading_seconds += gone.load_cpu_seconds
        resident = 0
        for engine in engines:
            if (found := process_use(engine.pid)) is not None:
                self._last[engine] = max(found.cpu_seconds, engine.load_cpu_seconds)  # the latter is not in ticks
                resident += found.resident_bytes
        cpu = self._cpu_seconds + sum(self._last.values())
        loading = self._loading_seconds + sum(engine.load_cpu_seconds for engine in self._last)
        return VersionUse(cpu, cpu - loading, resident)
