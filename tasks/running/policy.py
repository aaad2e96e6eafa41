"""Under which rules the steps run: versions, retries, limits. The only place that decorates Prefect tasks."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.utilities.annotations import opaque

from model_registry.lease import LeaseBusy, LeaseLost
from model_registry.store import StoreUnavailable
from tasks.running.journal import Journal, Line, journal
from tasks.running.source_hash import closure_hash
from tasks.running.stage import Stage
from tasks.running.stage_plan import planning

P = ParamSpec("P")
R = TypeVar("R")

RETRY_DELAYS = [1.0, 3.0, 8.0, 20.0, 40.0, 45.0]
"""Seconds between attempts, about two minutes in all; each stretched by up to RETRY_JITTER."""
RETRY_JITTER = 0.3


_TRANSIENT = (StoreUnavailable, LeaseLost, LeaseBusy, ConnectionError)


def may_pass(task: Any, run: Any, state: Any) -> bool:
    """Prefect's retry condition: only what can pass is tried again. Must stay a plain function (Prefect checks)."""
    return isinstance(state.data, _TRANSIENT)


class FlowStep(Generic[P, R]):
    """A Prefect task that can also be planned: while the flow is only planned, the body runs bare."""

    def __init__(self, task: Task[P, R], source: str) -> None:
        self._task, self._source = task, source

    @property
    def task(self) -> Task[P, R]:
        """Prefect's task; its version is the hash of its source, which is not read before somebody asks."""
        if self._task.version is None:
            self._task.version = closure_hash(self._source)[:12]
        return self._task

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if planning.get() is not None:
            return self._task.fn(*args, **kwargs)
        # Prefect need not look for its futures inside our values: there are none, and it would take as long as a step.
        call: Any = self.task
        result: R = call(*map(opaque, args), **{name: opaque(value) for name, value in kwargs.items()})
        return result

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> PrefectFuture[R] | Ready[R]:
        """Start it in the flow's task runner; ``.result()`` waits and raises."""
        if planning.get() is not None:
            return Ready(self._task.fn(*args, **kwargs))
        return self.task.submit(*args, **kwargs)


class Ready(Generic[R]):
    """A future that is there already."""

    def __init__(self, value: R) -> None:
        self._value = value

    def result(self) -> R:
        return self._value


def step(stage: Stage | str, *, module: str | None = None) -> Callable[[Callable[P, R]], FlowStep[P, R]]:
    """Make a function a step of the flow.

    Args:
        stage: its stage, or the name of a step that computes nothing (register, deploy).
        module: for the latter, the module whose source is its version; default the function's own.
    """

    def decorate(function: Callable[P, R]) -> FlowStep[P, R]:
        name = stage if isinstance(stage, str) else stage.name
        source = (module or function.__module__) if isinstance(stage, str) else stage.entry.partition(":")[0]
        body = _noted(name, function) if isinstance(stage, str) else function  # run_stage notes its own
        decorated = task(
            name=name,
            retries=len(RETRY_DELAYS),
            retry_delay_seconds=RETRY_DELAYS,
            retry_jitter_factor=RETRY_JITTER,
            retry_condition_fn=may_pass,
            # Ours is the only cache: Prefect's takes an outage for a miss and never looks at the artifact.
            cache_policy=NO_CACHE,
            persist_result=False,
            log_prints=False,
        )(body)
        return FlowStep(decorated, source)

    return decorate


def _noted(name: str, function: Callable[P, R]) -> Callable[P, R]:
    """Write the step's end into the run's journal."""

    @functools.wraps(function)
    def noted(*args: P.args, **kwargs: P.kwargs) -> R:
        notes = journal.get() or Journal()
        started = time.monotonic()
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            notes.fail(name, error, time.monotonic() - started)
            raise
        notes.add(Line(name, "computed", time.monotonic() - started))
        return result

    return noted
