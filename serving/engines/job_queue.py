"""Requests that wait for an engine, in order, and which of them go together."""

from __future__ import annotations

from collections import deque

from serving.engines.infer_job import InferJob

_FRAME_JOBS, _FRAME_BYTES = 64, 1 << 20


class JobQueue:
    """First come, first served; ``bytes``: of the bodies that wait."""

    def __init__(self) -> None:
        self._jobs: deque[InferJob] = deque()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def first(self) -> InferJob:
        return self._jobs[0]

    def put(self, job: InferJob) -> None:
        """Behind all others."""
        self._jobs.append(job)
        self.bytes += len(job.body)

    def put_back(self, job: InferJob) -> None:
        """Before all others."""
        self._jobs.appendleft(job)
        self.bytes += len(job.body)

    def take(self) -> InferJob:
        job = self._jobs.popleft()
        self.bytes -= len(job.body)
        return job

    def next_frame(self, *, idle: bool, most: int, until: float) -> tuple[list[InferJob], list[InferJob]]:
        """The next jobs that go together, none that nobody wants any more; and those for which it is too late.

        Args:
            idle: whether the engine has nothing to do. A job that an engine died with goes alone, to an idle one.
            most: jobs.
            until: when a job is answered at the soonest, by the monotonic clock.
        """
        jobs, late, size, most = list[InferJob](), list[InferJob](), 0, min(most, _FRAME_JOBS)
        while self._jobs and len(jobs) < most:
            job = self._jobs[0]
            if job.tries and (jobs or not idle):
                break
            if jobs and size + len(job.body) > _FRAME_BYTES:
                break
            self.take()
            if not job.wanted:  # the client hung up
                continue
            if job.deadline < until:
                late.append(job)
                continue
            jobs.append(job)
            size += len(job.body)
            if job.tries:
                break
        return jobs, late
