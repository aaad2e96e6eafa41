"""Keeps a number of engines running: one that dies is replaced at once, and one that dies before it has answered
anything ever more slowly, for ever."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from serving.engines.engine_link import EngineLink
from serving.exceptions import ServingError

_HEALTHY_SECONDS, _LONGEST_PAUSE, _FIRST_PAUSE = 60.0, 30.0, 0.25
_GRACE_SECONDS = 1.0
"""How long nobody is told that no engine is there: the next one is mostly there in less."""
log = logging.getLogger("winnow.serving")


class Keepsake(Protocol):
    """Who uses the engines."""

    def came(self, engine: EngineLink, *, again: bool) -> None:
        """An engine is there; ``again``: in the place of one that died."""

    def went(self, engine: EngineLink) -> None:
        """An engine can answer nothing any more."""

    def fails(self, why: str) -> None:
        """An engine could not be started; it is tried again."""


class EngineKeeper:
    """Engines of one kind.

    Args:
        start: starts one; raises ServingError.
        user: is told what comes and goes.

    Attributes:
        engines: that can answer.
        restarts: engines that took the place of one that died.
    """

    def __init__(self, start: Callable[[], Awaitable[EngineLink]], user: Keepsake, *, name: str, count: int) -> None:
        self._start, self._user, self._name, self._count = start, user, name, count
        self.engines: list[EngineLink] = []
        self.restarts = 0
        self._keepers: list[asyncio.Task[None]] = []
        self._empty_since: float | None = None
        self._end = ""
        """How the last engine ended, where it is known."""

    async def open(self) -> EngineLink:
        """Start the first engine, and keep all of them running from then on; the first one.

        Raises:
            ServingError, or what ``start`` raises: nothing runs.
        """
        first = await self._start()
        self.engines.append(first)
        self._keepers = [
            asyncio.create_task(self._keep(first if not slot else None), name=f"{self._name} engine {slot}")
            for slot in range(self._count)
        ]
        return first

    def grow(self, count: int) -> None:
        """Keep at least so many running."""
        for slot in range(self._count, count):
            self._keepers.append(asyncio.create_task(self._keep(None), name=f"{self._name} engine {slot}"))
        self._count = max(self._count, count)

    async def close(self) -> None:
        """End all of them."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        engines, self.engines = self.engines, []
        await asyncio.gather(*(engine.stop() for engine in engines))

    def missing(self) -> str:
        """Why no engine is there, once that has lasted for a while; else empty."""
        if self._empty_since is None or time.monotonic() - self._empty_since <= _GRACE_SECONDS:
            return ""
        return f"its engine process died{self._end} and is started again"

    async def _keep(self, engine: EngineLink | None) -> None:
        pause, died = 0.0, False
        while True:
            if engine is None:
                if pause:
                    await asyncio.sleep(pause)
                pause = min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)
                try:
                    engine = await self._start()
                except ServingError as error:
                    again = f"its engine process died{self._end}; starting it again failed: " if died else ""
                    log.error("%s: %s%s", self._name, again, error.detail)
                    self._user.fails(f"{again}{error}")
                    continue
                self._came(engine, died)
            since = time.monotonic()
            await asyncio.shield(engine.closed)
            self.engines.remove(engine)
            if not self.engines:
                self._empty_since = time.monotonic()
            self._user.went(engine)
            if engine.answered or time.monotonic() - since > _HEALTHY_SECONDS:
                pause = 0.0  # it can answer: a request that kills engines must not take them from all others
            # Not waited for: the next one is started at once, and who asks meanwhile is told what is known.
            engine.gone.add_done_callback(self._note_end)
            engine, died = None, True

    def _came(self, engine: EngineLink, again: bool) -> None:
        self.engines.append(engine)
        self._empty_since = None
        if again:
            self.restarts += 1
            log.warning("%s: engine process %s is ready", self._name, engine.pid)
        self._user.came(engine, again=again)

    def _note_end(self, gone: asyncio.Future[str]) -> None:
        self._end = f" ({gone.result()})"
        log.error("%s: engine process died%s", self._name, self._end)
