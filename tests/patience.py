"""How long tests wait for what must come: as long as the slowest machine may need, since only a failed test waits so.

CI's machines are shared and were five times slower than usual once. A test that says how long something may take at
most says so itself; everybody else waits with these.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 600.0
"""Seconds."""


def wait_for(condition: Callable[..., Any], *, seconds: float = PATIENCE, what: str = "it", every: float = 0.02) -> Any:
    """The condition's first true value; fails the test if there is none in time."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not happen within {seconds:g} s"
        time.sleep(every)
    return value


async def wait_in_loop(condition: Callable[..., Any]) -> None:
    """Poll until the condition holds, while the event loop goes on."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.005)
