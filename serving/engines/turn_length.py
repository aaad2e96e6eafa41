"""How long the kernel lets a thread run before another one may: short turns for those who answer.

Linux gives every thread a turn of about 3 ms, and one that wakes up meanwhile waits for its end, however low the
priority of the one that runs. One that asked for shorter turns need not wait for one with longer ones (Linux 6.12:
``sched_runtime`` of SCHED_OTHER, and PREEMPT_SHORT). So an answer does not wait for a model that is being loaded.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys

_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}
"""Numbers of sched_setattr and sched_getattr, for which Python has no function."""
SHORT = 100_000
"""Nanoseconds: the shortest there is."""


class _Attributes(ctypes.Structure):
    """``struct sched_attr`` of sched.h, its first version."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def take_short_turns() -> bool:
    """For this thread and those that it will start; False where the kernel does not have them or may not be asked."""
    return _take(SHORT, None) == SHORT


def take_long_turns(nice: int) -> None:
    """The usual ones again, for this thread and those that it will start, at this priority (0 to 19).

    Raises:
        OSError: the priority is refused.
    """
    _take(0, nice)
    os.setpriority(os.PRIO_PROCESS, 0, nice)  # the calling thread's, on Linux


def _take(nanoseconds: int, nice: int | None) -> int:
    """The length of this thread's turns when they have been asked to be that long; 0: nobody says."""
    calls = _CALLS.get(platform.machine())
    if sys.platform != "linux" or calls is None:
        return 0
    system, found = ctypes.CDLL(None), _Attributes()
    size = ctypes.sizeof(found)
    if system.syscall(calls[1], 0, ctypes.byref(found), size, 0) or found.policy != os.SCHED_OTHER:
        return 0
    found.runtime, found.nice = nanoseconds, found.nice if nice is None else nice
    if system.syscall(calls[0], 0, ctypes.byref(found), 0):
        return 0
    system.syscall(calls[1], 0, ctypes.byref(found), size, 0)
    return int(found.runtime)
