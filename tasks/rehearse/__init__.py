"""Rehearse: an untrained model is asked about a few rows, and what it learns is settled before anything is trained."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from model_registry.variant import Frozen
from tasks.running.policy import step
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Outcome, Stage
from tasks.running.stage_cache import run_stage


class RehearseSpec(Frozen):
    """Which model is asked."""

    scale: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the workload's model() for the teacher"
    )


STAGE = Stage(
    name="rehearse",
    pool="torch",
    warms="numbers",
    entry="tasks.rehearse.rehearse_child:main",
    libraries=("torch", "numpy"),
    device_matters=False,
    looks=True,
    yields=("untrained",),
)


@step(STAGE)
def rehearse(job: Job, spec: RehearseSpec, *, data: DataRef) -> Outcome:
    """Make the variant ``untrained``: the teacher as it is before its training, which later stages can be tried on.

    Values: ``task``, see :func:`settled_data`; ``row_seconds``, what an answer takes.

    Raises:
        WorkloadError: the model does not take the data; or targets, answers, loss and metric do not go together.
    """
    return run_stage(STAGE, job, spec, data=data)


def settled_data(data: DataRef, outcome: Outcome) -> DataRef:
    """The data with the task and the metric that were settled when a model was rehearsed or brought.

    The same data while the outcome is only planned.
    """
    task = outcome.values.get("task")
    if task is None:
        return data
    return DataRef.model_validate({**dict(data), "task": task["kind"], "metric": task["metric"]})
