"""Ends calls whose message does not arrive: grpc sets them no limit, and each of them holds a thread."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Protocol


class Cancellable(Protocol):
    """A call."""

    def cancel(self) -> None:
        """End it, from any thread."""


class ArrivalWatch:
    """Knows the calls that wait for their message, and for how long each may."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[Cancellable, float] = {}

    def message(self, arriving: Iterator[bytes], call: Cancellable) -> bytes | None:
        """The call's message; None where it ends without one. Whatever ``arriving`` raises when the call is over."""
        self._since[call] = time.monotonic()
        try:
            return next(arriving, None)
        finally:
            del self._since[call]

    def sweep(self) -> None:
        """End those that waited for too long; called about once a second."""
        now = time.monotonic()
        for call, since in self._since.copy().items():
            if now - since > self._seconds:
                call.cancel()
