"""The engines of one version: those for what everybody sends, and one for large bodies while there are some."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from model_registry.text_input import DECODER
from model_registry.variant import Variant
from serving.engines.engine_lane import EngineLane, Heard, LaneWatcher
from serving.engines.engine_link import EngineLink
from serving.engines.infer_job import InferJob
from serving.engines.usable_cores import usable_cores
from serving.exceptions import ServingError
from serving.limits import RequestLimits

_MOST_ENGINES = 4
_SHARED_BYTES = 64 << 20
"""A model file larger than this is loaded once: each engine has weights of its own."""
_LARGE_IDLE_SECONDS = 60.0
"""How long the engine for large bodies stays without one."""
log = logging.getLogger("winnow.serving")

Start = Callable[[Heard], Awaitable[EngineLink]]


class VersionEngines:
    """Parsing JSON of megabytes takes longer than most models run: it holds up only others of its kind.

    Args:
        start: starts an engine that tells the given function of its answers; raises ServingError.
        watcher: of the lane for what everybody sends.
        isolated: whether engines are processes; else there is one, which has nowhere else to put large bodies.
        spare: begin with one engine, until :meth:`widen`.
    """

    def __init__(
        self,
        start: Start,
        limits: RequestLimits,
        watcher: LaneWatcher,
        *,
        name: str,
        variant: Variant,
        isolated: bool = True,
        spare: bool = False,
    ) -> None:
        self._isolated = isolated
        self._most = _engines(variant, limits.cores) if isolated else 1
        self._start, self._limits, self._watcher, self._name = start, limits, watcher, name
        self.lane = EngineLane(start, limits, watcher, name=name, count=1 if spare else self._most)
        self._large: EngineLane | None = None
        self._large_used = 0.0
        self._tasks = set[asyncio.Task[None]]()

    def widen(self) -> None:
        """Have as many engines as there is room for."""
        self.lane.keeper.grow(self._most)

    @property
    def lanes(self) -> list[EngineLane]:
        return [self.lane] if self._large is None else [self.lane, self._large]

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is being computed."""
        return all(lane.idle for lane in self.lanes)

    def submit(self, job: InferJob, *, at_once: bool) -> None:
        """See :meth:`EngineLane.submit`."""
        text = job.json_bytes if job.json_bytes >= 0 else len(job.body)  # raw tensors cost nothing to read
        apart = self._isolated and text >= self._limits.large_body_bytes
        lane = self._large_lane() if apart else self.lane
        lane.submit(job, at_once=at_once)

    def sweep(self) -> None:
        """End what took too long, and the engine for large bodies when it has been idle for long."""
        for lane in self.lanes:
            lane.sweep()
        large = self._large
        if large is None:
            return
        if not large.idle:
            self._large_used = time.monotonic()
        elif large.engines and time.monotonic() - self._large_used > _LARGE_IDLE_SECONDS:
            self._large = None
            self._beside(large.close())

    async def close(self) -> None:
        """End all engines."""
        await asyncio.gather(*(lane.close() for lane in self.lanes), *self._tasks)

    def _large_lane(self) -> EngineLane:
        """The lane of large bodies, opened for the first of them; they wait in it meanwhile."""
        self._large_used = time.monotonic()
        if self._large is None:
            beside = _Beside(self._watcher)
            self._large = EngineLane(self._start, self._limits, beside, name=f"{self._name}, large bodies", count=1)
            self._beside(self._open(self._large))
        return self._large

    async def _open(self, lane: EngineLane) -> None:
        try:
            await lane.keeper.open()
        except ServingError as error:
            log.error("%s: no engine for large bodies: %s", self._name, error)
            self._large = None
            lane.refuse_all(error)
        else:
            lane.turn()

    def _beside(self, what: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Beside:
    """Watches the lane of large bodies: its requests count, but what becomes of it says nothing about the version."""

    def __init__(self, watcher: LaneWatcher) -> None:
        self.answered, self.refused = watcher.answered, watcher.refused

    def restarting(self, why: str) -> None:
        """Its requests are told by itself."""

    def restarted(self) -> None:
        """Nothing was said to be missing."""


def _engines(variant: Variant, most: int) -> int:
    """Engine processes for a variant: as many as the cores that we may use, at most so many, have room for."""
    if any(file.path == DECODER for file in variant.files):
        return 1  # texts that are continued together cost little more than one
    cores = min(most, usable_cores())
    large = sum(file.size for file in variant.files) > _SHARED_BYTES
    return 1 if large else max(1, min(_MOST_ENGINES, cores // max(1, variant.runtime.intra_op_threads)))
