"""How fast a lane works, told from what its engines did: how long the next request will wait, how much fits a frame."""

from __future__ import annotations

import time
from collections.abc import Sequence, Sized
from typing import NamedTuple, Protocol

from serving.engines.engine_frames import EngineWork
from serving.engines.infer_job import InferJob

_ALONE_SECONDS = 0.001
"""Frames that take less are left to the first engine: waking another one costs as much, and halves the batches."""
_LEAST_QUIET = 5
"""Requests that were alone, before what they took is believed: the first are the slowest."""
_AT_ONCE_SECONDS = 0.0005
"""A request that was sent within this had none before it."""
_FRAME_SECONDS = 0.02
"""Work that goes to an engine at a time, of more than one request: what it has, nobody can take back."""
_NEW = 0.1
"""Weight of the latest frame."""


class LanePace(NamedTuple):
    """How much there is to do.

    ``quiet_seconds``: what a request takes that did not wait, from its last byte to its answer; 0 while few were seen.
    ``request_seconds``: what one more request costs, where all engines work; ``wait_seconds``: until those before the
    next request will be answered; ``fullness``: waiting requests as a share of those that may wait.
    """

    quiet_seconds: float = 0.0
    request_seconds: float = 0.0
    wait_seconds: float = 0.0
    fullness: float = 0.0


class Busy(Protocol):
    """An engine; ``flying``: what it was sent and has not answered."""

    @property
    def flying(self) -> Sized: ...


class WorkPace:
    """Moving averages of what engines say of their frames, at first their means.

    Attributes:
        job_seconds: what an engine takes for a request, among others of its frame.
        frame_jobs: requests that go to an engine at a time, at most.
        quick: whether frames are so short that one engine does all.
    """

    def __init__(self) -> None:
        self.job_seconds = self._frame_seconds = self._quiet_seconds = 0.0
        self.frame_jobs, self.quick = 1 << 30, True
        self._frames = self._quiet = 0

    def request_seconds(self, engines: int) -> float:
        """What one more request costs, where so many engines work."""
        return self.job_seconds if self.quick or not engines else self.job_seconds / engines

    def wait_seconds(self, waiting: Sized, engines: Sequence[Busy]) -> float:
        """Until all that waits, and all that the engines have, is answered. Asked for each request: no detours."""
        ahead = len(waiting)
        for engine in engines:
            ahead += len(engine.flying)
        return ahead * self.request_seconds(len(engines)) if ahead else 0.0

    @property
    def quiet_seconds(self) -> float:
        """See :class:`LanePace`."""
        return self._quiet_seconds if self._quiet >= _LEAST_QUIET else 0.0

    def learn(self, jobs: Sequence[tuple[InferJob, int]], work: EngineWork) -> None:
        """Take in what an engine did for these jobs."""
        seconds = (work.input_us + work.run_us + work.output_us) / 1e6
        self._frames += 1
        weight = max(_NEW, 1 / self._frames)
        self._frame_seconds += weight * (seconds - self._frame_seconds)
        self.job_seconds += weight * (seconds / len(jobs) - self.job_seconds)
        self.quick = self._frame_seconds < _ALONE_SECONDS * (2 if self.quick else 0.5)  # or it would go to and fro
        self.frame_jobs = max(1, int(_FRAME_SECONDS / max(self.job_seconds, 1e-9)))
        if len(jobs) == 1 and (job := jobs[0][0]).sent - job.began < _AT_ONCE_SECONDS:
            self._quiet += 1
            self._quiet_seconds += max(_NEW, 1 / self._quiet) * (time.monotonic() - job.began - self._quiet_seconds)
