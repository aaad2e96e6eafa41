"""A queue of requests and the engines that work it off: nothing waits while an engine is idle.

What queued while the engines were busy goes to the next free one as a single frame, so batches form by themselves and
nobody waits for one to fill. A frame's requests stay here until they are answered; an engine that dies gives them back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import orjson

from serving.engines.engine_frames import GENERATE, PLAIN, Answered, EngineWork
from serving.engines.engine_keeper import EngineKeeper
from serving.engines.engine_link import EngineLink
from serving.engines.infer_job import InferJob
from serving.engines.job_queue import JobQueue
from serving.engines.lane_pace import LanePace, WorkPace
from serving.exceptions import EngineCrashed, InferenceTimedOut, Overloaded, ServingError
from serving.limits import RequestLimits

_DEPTH = 2
"""Frames that an engine has at a time: the next is read while it computes."""
_MOST_TRIES = 2
_LOOK_SECONDS = 0.002
"""Wait from which on a request is looked at for its timeout."""
_SHARE_OF_TIMEOUT = 0.5
"""That a request may be expected to wait: what is expected is not what comes, and a late answer is work for nothing."""
log = logging.getLogger("winnow.serving")

Heard = Callable[[EngineLink, list[tuple[InferJob, int]], EngineWork], None]


class LaneWatcher(Protocol):
    """Who is told how a lane fares."""

    def restarting(self, why: str) -> None:
        """No engine is there, and why."""

    def restarted(self) -> None:
        """An engine died and another one has taken its place."""

    def answered(self, jobs: list[tuple[InferJob, int]], work: EngineWork) -> None:
        """Jobs were answered, with these statuses."""

    def refused(self, status: int) -> None:
        """A job ended without an engine's answer."""


class EngineLane:
    """Requests of one version, and the engine processes that answer them.

    Args:
        start: starts an engine that tells the given function of its answers; raises ServingError.
        count: of engines.
    """

    def __init__(
        self,
        start: Callable[[Heard], Awaitable[EngineLink]],
        limits: RequestLimits,
        watcher: LaneWatcher,
        *,
        name: str,
        count: int,
    ) -> None:
        self._limits, self._watcher, self._name = limits, watcher, name
        self.keeper = EngineKeeper(lambda: start(self._heard), self, name=name, count=count)
        self.waiting = JobQueue()
        self._pace = WorkPace()
        self._scheduled = False

    @property
    def engines(self) -> list[EngineLink]:
        """Those that can answer."""
        return self.keeper.engines

    def submit(self, job: InferJob, *, at_once: bool) -> None:
        """Take a job; answered later by ``job.deliver``.

        Args:
            at_once: do not wait for what else this turn of the loop brings.

        Raises:
            Overloaded: too much is waiting already, at all or for the time that the request leaves us.
        """
        limits, queue = self._limits, self.waiting
        waiting, wait = len(queue), self._pace.wait_seconds(queue, self.keeper.engines)
        if waiting and (
            waiting >= limits.pending
            or queue.bytes + len(job.body) > limits.pending_bytes
            or wait > limits.pending_seconds
        ):
            raise Overloaded(f"{waiting} requests are waiting for this model; try again later")
        if wait > _LOOK_SECONDS and wait > _SHARE_OF_TIMEOUT * job.seconds_left():
            raise Overloaded(
                f"a request would wait for about {1e6 * wait:.0f} us for this model, which leaves too little of its "
                "timeout; try again later"
            )
        queue.put(job)
        if at_once:
            self.turn()
        elif not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self.turn)

    @property
    def pace(self) -> LanePace:
        """How it fares now."""
        pace, engines, queue = self._pace, self.engines, self.waiting
        fullness = max(len(queue) / self._limits.pending, queue.bytes / self._limits.pending_bytes)
        wait = pace.wait_seconds(queue, engines)
        return LanePace(pace.quiet_seconds, pace.request_seconds(len(engines)), wait, fullness)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is being computed."""
        return not self.waiting and not any(engine.flying for engine in self.engines)

    def turn(self) -> None:
        """Send what waits to engines that can take it."""
        self._scheduled = False
        while self.waiting:
            engine = self._free()
            if engine is None:
                return
            pace = self._pace
            jobs, late = self.waiting.next_frame(
                idle=not engine.frames, most=pace.frame_jobs, until=time.monotonic() + pace.job_seconds
            )
            for job in late:
                self._refuse(job, InferenceTimedOut("the request waited until its timeout, so it was not begun"))
            if jobs:
                engine.send(jobs)
            elif not late:
                return

    def sweep(self) -> None:
        """End what took too long; called about twice a second."""
        now, seconds = time.monotonic(), self._limits.infer_seconds
        if missing := self.keeper.missing():
            self._watcher.restarting(missing)
        late = f"the model did not answer within {seconds:g} s"
        while self.waiting and now - self.waiting.first.began > seconds:
            self._refuse(self.waiting.take(), InferenceTimedOut(late))
        for engine in list(self.engines):
            overdue = [number for number, job in engine.flying.items() if now - job.sent > seconds]
            silent = bool(overdue) and engine.heard < engine.flying[overdue[0]].sent
            for number in overdue:
                job = engine.flying.pop(number)
                if job.packing & GENERATE:
                    engine.drop(number)
                self._refuse(job, InferenceTimedOut(late))
            if silent:
                log.error(
                    "%s: engine process %s answered nobody for %g s and is killed", self._name, engine.pid, seconds
                )
                engine.kill()

    def refuse_all(self, error: ServingError) -> None:
        """Answer everything that waits with this error."""
        while self.waiting:
            self._refuse(self.waiting.take(), error)

    async def close(self) -> None:
        """End the engines; whatever is still there is refused."""
        engines = list(self.engines)
        await self.keeper.close()
        taken_away = EngineCrashed("the version was taken away before the request was answered; try again")
        for engine in engines:
            while engine.flying:
                self._refuse(engine.flying.popitem()[1], taken_away)
        self.refuse_all(taken_away)

    # -- choosing ---------------------------------------------------------------------------------------------------
    def _free(self) -> EngineLink | None:
        """The engine to take the next frame: the least busy one, and for quick models the first."""
        usable = self.engines[:1] if self._pace.quick else self.engines
        best = min(usable, key=lambda engine: engine.frames, default=None)
        return best if best is not None and best.frames < _DEPTH else None

    # -- what engines say -------------------------------------------------------------------------------------------
    def _heard(self, engine: EngineLink, jobs: list[tuple[InferJob, int]], work: EngineWork) -> None:
        if jobs and work.rows:
            self._pace.learn(jobs, work)
        self._watcher.answered(jobs, work)
        if self.waiting:
            self.turn()

    def came(self, engine: EngineLink, *, again: bool) -> None:
        if again:
            self._watcher.restarted()
        self.turn()

    def went(self, engine: EngineLink) -> None:
        """Give what the engine had to another one, once."""
        lost, engine.flying = list(engine.flying.values()), {}
        for job in reversed(lost):
            job.tries += 1
            if job.tries < _MOST_TRIES:
                self.waiting.put_back(job)
            else:
                self._refuse(job, EngineCrashed(f"the model's engine process died {job.tries} times on this request"))
        self.turn()

    def fails(self, why: str) -> None:
        if not self.engines:
            self._watcher.restarting(why)
            self.refuse_all(EngineCrashed(why))

    def _refuse(self, job: InferJob, error: ServingError) -> None:
        self._watcher.refused(error.status)
        job.deliver(Answered(0, orjson.dumps({"error": str(error)}), -1, error.status, PLAIN))
