"""Processes that the endpoint starts beside itself and talks to over a socket pair: gRPC, and the writer of samples."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from model_registry.quiet import QUIET


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
        env={**{name: value for name, value in os.environ.items() if not name.startswith(without)}, **QUIET},
    )


def how_it_ended(status: int) -> str:
    """For people: the name of the signal, or the status."""
    return f"process ended with {signal.Signals(-status).name if status < 0 else f'status {status}'}"
