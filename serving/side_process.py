"""Processes that the endpoint starts beside itself and talks to over a socket pair: gRPC, and the writer of samples."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

from model_registry.quiet import QUIET

_HEALTHY_SECONDS, _LONGEST_PAUSE = 60.0, 30.0


async def start_beside(
    module: str, descriptor: int, *arguments: str, without: str | tuple[str, ...]
) -> asyncio.subprocess.Process:
    """Run a module with the descriptor's number as its first argument; what it says joins the endpoint's log.

    Args:
        descriptor: of its end of the socket pair.
        without: begins the names of those of our variables that it does not get.
    """
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", module, str(descriptor), *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=None,
        pass_fds=(descriptor,),
        env=environment_beside(without),
    )


def environment_beside(without: str | tuple[str, ...]) -> dict[str, str]:
    """Our variables for a process beside us, but for those whose names begin so."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith(without)}, **QUIET}


class RestartPause:
    """How long a process that ended stays away: longer each time, but briefly after one that had been well.

    Args:
        first: seconds.
    """

    def __init__(self, first: float) -> None:
        self._first, self._seconds = first, 0.0
        self._began = time.monotonic()

    def begin(self) -> None:
        """The process is started now."""
        self._began = time.monotonic()

    def after(self) -> float:
        """It has ended: seconds until it is started again."""
        self._seconds = min(max(2 * self._seconds, self._first), _LONGEST_PAUSE)
        if time.monotonic() - self._began > _HEALTHY_SECONDS:
            self._seconds = self._first
        return self._seconds


def how_it_ended(status: int) -> str:
    """For people: the name of the signal, or the status."""
    return f"process ended with {signal.Signals(-status).name if status < 0 else f'status {status}'}"
