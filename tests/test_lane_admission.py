"""Whoever would wait too long is refused at once; what has become late meanwhile is not computed."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import orjson
import pytest

from serving.engines.engine_frames import GZIP, Answered, EngineWork
from serving.engines.engine_lane import EngineLane, Heard
from serving.engines.infer_job import InferJob
from serving.exceptions import Overloaded
from serving.limits import RequestLimits

TENSOR = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [5]}


def asks(timeout: int | None = None, **more: Any) -> bytes:
    return orjson.dumps(
        {"inputs": [TENSOR], **({} if timeout is None else {"parameters": {"timeout": timeout}}), **more}
    )


class Job(InferJob):
    """Keeps its answer."""

    __slots__ = ("status",)

    def __init__(self, body: bytes, json_bytes: int = -1, packing: int = 0, *, age: float = 0.0) -> None:
        super().__init__(body, json_bytes, packing, began=time.monotonic() - age)
        self.status = 0

    def deliver(self, answered: Answered) -> None:
        self.status = answered.status


class HeldEngine:
    """Keeps what it is sent until it is let go."""

    def __init__(self, heard: Heard) -> None:
        loop = asyncio.get_running_loop()
        self.heard, self.frames, self.flying = heard, 0, dict[int, InferJob]()
        self.gone, self.closed = loop.create_future(), loop.create_future()
        self.sent = list[Sequence[InferJob]]()

    def send(self, jobs: Sequence[InferJob]) -> None:
        self.sent.append(jobs)
        self.frames += 1
        for job in jobs:
            job.sent = time.monotonic()
            self.flying[id(job)] = job

    def let_go(self, seconds: float) -> None:
        """Answer all of the oldest frame, which took so long."""
        jobs = self.sent.pop(0)
        self.frames -= 1
        for job in jobs:
            del self.flying[id(job)]
            job.deliver(Answered(0, b"", -1, 200, 0))
        work = EngineWork(len(jobs), 1, 0, int(1e6 * seconds), 0, True)
        self.heard(self, [(job, 200) for job in jobs], work)  # type: ignore[arg-type]

    async def stop(self) -> None:
        """There is no process."""


class Quiet:
    """Whom nothing interests."""

    def __init__(self) -> None:
        self.restarting: Callable[[str], None] = lambda why: None
        self.restarted: Callable[[], None] = lambda: None
        self.answered: Callable[..., None] = lambda jobs, work: None
        self.statuses = list[int]()
        self.refused = self.statuses.append


def with_lane(scene: Callable[[EngineLane, HeldEngine, Quiet], None], limits: RequestLimits | None = None) -> None:
    """Run a scene with a lane whose only engine takes 10 ms for a request and has two frames of two."""

    async def whole() -> None:
        engines, watch = list[HeldEngine](), Quiet()

        async def start(heard: Heard) -> Any:
            engines.append(HeldEngine(heard))
            return engines[-1]

        lane = EngineLane(start, limits or RequestLimits(), watch, name="m", count=1)
        await lane.keeper.open()
        lane.submit(Job(asks()), at_once=True)
        engines[0].let_go(0.01)
        for _ in range(2):
            lane.submit(Job(asks()), at_once=False)
            lane.submit(Job(asks()), at_once=True)
        assert [len(frame) for frame in engines[0].sent] == [2, 2]
        scene(lane, engines[0], watch)
        await lane.close()

    asyncio.run(whole())


def raw(timeout: int) -> tuple[bytes, int]:
    head = asks(timeout)
    return head + b"\0" * 2000, len(head)


@pytest.mark.parametrize(
    ("body", "json_bytes", "packing", "taken"),
    [
        (asks(), -1, 0, True),
        (asks(0), -1, 0, True),
        (asks(1_000_000), -1, 0, True),
        (asks(70_000), -1, 0, False),
        (asks(70_000).replace(b":", b" : "), -1, 0, False),
        (orjson.dumps({"parameters": {"timeout": 70_000}, "inputs": [{**TENSOR, "data": [0.5] * 999}]}), -1, 0, False),
        (asks(70_000, inputs=[{**TENSOR, "data": [0.5] * 999}]), -1, 0, False),
        (*raw(70_000), 0, False),
        (*raw(1_000_000), 0, True),
        (b"\0" * 600 + asks(70_000), 600, 0, True),
        (asks(70_000), 0, 0, True),
        (asks(70_000), -1, GZIP, True),
        (asks(id='"timeout": 1'), -1, 0, True),
        (asks(id="timeout"), -1, 0, True),
    ],
    ids=range(14),
)
def test_a_request_is_refused_at_once_where_the_wait_is_more_than_half_of_its_timeout(
    body: bytes, json_bytes: int, packing: int, taken: bool
) -> None:
    def scene(lane: EngineLane, engine: HeldEngine, watch: Quiet) -> None:
        assert lane.pace.wait_seconds == pytest.approx(0.04)
        if taken:
            lane.submit(Job(body, json_bytes, packing), at_once=True)
        else:
            with pytest.raises(Overloaded, match="wait for about 40000 us"):
                lane.submit(Job(body, json_bytes, packing), at_once=True)
        assert len(lane.waiting) == taken

    with_lane(scene)


def test_a_request_that_has_become_late_in_the_queue_is_not_computed() -> None:
    def scene(lane: EngineLane, engine: HeldEngine, watch: Quiet) -> None:
        late, other = Job(asks(200_000)), Job(asks())
        lane.submit(late, at_once=True)
        lane.submit(other, at_once=True)
        late.deadline = time.monotonic()
        engine.let_go(0.02)
        assert (late.status, watch.statuses) == (504, [504])
        assert list(engine.sent[-1]) == [other] and not lane.waiting

    with_lane(scene)


def test_what_has_waited_before_it_came_here_has_less_time() -> None:
    def scene(lane: EngineLane, engine: HeldEngine, watch: Quiet) -> None:
        lane.submit(Job(asks(1_000_000)), at_once=True)
        with pytest.raises(Overloaded):
            lane.submit(Job(asks(1_000_000), age=0.95), at_once=True)

    with_lane(scene)


def test_nothing_is_looked_for_where_nobody_waits() -> None:
    def scene(lane: EngineLane, engine: HeldEngine, watch: Quiet) -> None:
        for _ in range(2):
            engine.let_go(0.02)
        job = Job(asks(1))  # the engine says itself that it cannot be in time, and what it would take
        lane.submit(job, at_once=True)
        assert job.deadline == math.inf and list(engine.sent[-1]) == [job]

    with_lane(scene)


def test_the_expected_wait_is_bounded_whatever_is_in_flight() -> None:
    def scene(lane: EngineLane, engine: HeldEngine, watch: Quiet) -> None:
        lane.submit(Job(asks()), at_once=True)
        with pytest.raises(Overloaded, match="1 requests are waiting"):
            lane.submit(Job(asks()), at_once=True)

    with_lane(scene, RequestLimits(pending_seconds=0.045))
