"""The data step: materialise the splits in the store, fingerprint them, and check them before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from model_registry.manifest import FileEntry
from model_registry.store import Store
from model_registry.variant import Frozen
from tasks.readers.sources import fingerprint
from tasks.running.errors import DataCheckFailed
from tasks.running.policy import step
from tasks.running.splits import DataRef, MetricRef
from tasks.running.stage import Job, Outcome, Stage
from tasks.running.stage_cache import log_folder, run_stage

Action = Literal["fail", "warn", "skip"]
"""What a check does when it finds something: stop the run, report it, or not look at all."""


class DataSpec(Frozen):
    """What the data must satisfy before training."""

    min_rows: int = Field(
        default=10, ge=1, description="smallest number of rows that a split may have; fewer stop the run"
    )
    ranges: dict[str, tuple[float | None, float | None]] = Field(
        default_factory=dict,
        description="allowed values by column, as [lowest, highest], null for no limit; a value outside stops the run",
    )
    missing: Action | None = Field(
        default=None,
        description="what to do about NaN, infinite and empty values; absent: fail, but warn where the workload fills "
        "them in (fills_missing = True), as winnow.Tabular does",
    )
    leakage: Action = Field(default="fail", description="what to do about samples that are in more than one split")
    duplicates: Action = Field(
        default="warn", description="what to do about samples that are in one split more than once"
    )
    conflicts: Action = Field(default="warn", description="what to do about equal samples with different targets")
    unfamiliar: Action = Field(
        default="warn",
        description="what to do about splits where more than 1 % of the rows (and more than 3) have values unlike "
        "those of train",
    )
    range_tolerance: float = Field(
        default=0.1,
        ge=0,
        description="how far a value may lie outside train's range before it is unfamiliar, as a share of that range",
    )
    balance: Action = Field(
        default="warn", description="what to do about classes that are much rarer than the most frequent one"
    )
    max_imbalance: float = Field(
        default=20.0, ge=1, description="how many times rarer than the most frequent class a class may be"
    )

    precision: Action = Field(
        default="fail",
        description="what to do about columns that lose more than a tenth of their different values in float32, as "
        "times in milliseconds do",
    )
    identifiers: Action = Field(
        default="warn", description="what to do about columns that number or name the rows, each value once"
    )
    revealing: Action = Field(
        default="warn",
        description="what to do about columns that give the answer alone: nearly always right, or far more often than "
        "the next best",
    )

    @field_validator("ranges")
    @classmethod
    def _ordered(
        cls, ranges: dict[str, tuple[float | None, float | None]]
    ) -> dict[str, tuple[float | None, float | None]]:
        for column, (lowest, highest) in ranges.items():
            if lowest is not None and highest is not None and lowest > highest:
                raise ValueError(f"{column}: the lowest value {lowest:g} is above the highest {highest:g}; swap them")
        return ranges


STAGE = Stage(
    name="data",
    pool="checks",
    warms="torch",
    entry="tasks.data.data_child:main",
    libraries=("great-expectations", "numpy", "pandas", "pyarrow", "scikit-learn"),
    seed_matters=False,  # the division into splits has a seed of its own, in the workload's arguments
    device_matters=False,
    looks=True,
)


@step(STAGE)
def check_data(job: Job, spec: DataSpec) -> Outcome:
    """Load the workload's splits, put them into the store and check them; :func:`data_ref` reads the answer.

    Raises:
        DataReadError, WorkloadError: the data cannot be read, or is not what a workload must give.
        DataCheckFailed: a critical check failed; ``details``: failures (check, split, rows) and data_docs (its page).
    """
    base = Path(job.workload.folder) if job.workload.folder else Path.cwd()
    try:
        return run_stage(STAGE, job, spec, extra={"sources": fingerprint(job.workload.arguments, base)})
    except DataCheckFailed as error:
        # The page of a failure is of no cached result: put it where the person who reads the message can open it.
        page = log_folder(job.run_id) / "data_docs.html"
        Store(job.store).fetch(FileEntry.model_validate(error.details["data_docs"]), page)
        raise DataCheckFailed(f"{error.message}\n  page: {page}", **error.details) from error


def understood(outcome: Outcome) -> tuple[str, ...]:
    """What the data were understood as, and what to look at, in sentences."""
    return (*outcome.values.get("reading", ()), *outcome.values.get("warnings", ()))


def data_ref(outcome: Outcome) -> DataRef:
    """The checked data of :func:`check_data`; a placeholder while the run is only planned."""
    if "data" in outcome.values:
        return DataRef.model_validate(outcome.values["data"])
    pending = MetricRef(name="pending", better="higher", builtin=False)
    return DataRef(fingerprint=outcome.key, splits=(), columns={}, task="other", metric=pending)
