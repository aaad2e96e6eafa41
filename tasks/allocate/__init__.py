"""Allocate: how much of each layer to keep for a budget of time or bytes; prune takes the ratios it answers."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import Field

from model_registry.variant import Frozen, Variant
from tasks.running.errors import PruningRefused
from tasks.running.policy import step
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Outcome, Stage
from tasks.running.stage_cache import run_stage

Share = Annotated[float, Field(gt=0, lt=1)]
SpecPart = TypeVar("SpecPart", bound=Frozen)


class SensitivitySpec(Frozen):
    """How the damage of narrowing each layer is measured."""

    rows: int = Field(
        default=256, ge=16, le=1000, description="rows of the calibration split that the narrowed model is asked"
    )
    removals: tuple[Share, ...] = Field(
        default=(0.25, 0.5, 0.75),
        min_length=1,
        description="shares of a layer's channels whose removal is tried, besides all but min_keep",
    )
    min_keep: float = Field(default=0.1, gt=0, lt=1, description="share of a layer's channels that always stays")
    round_to: int | None = Field(
        default=None,
        ge=1,
        description="channels kept are a multiple of this; null: as the workload hints, else of a power of two near an "
        "eighth of the layer's width, at most 16",
    )
    ignore: tuple[str, ...] = Field(
        default=(), description="names of modules that keep their width, besides those the workload hints at"
    )


class TableSpec(Frozen):
    """How the latency of layers is measured."""

    kind: Literal["int8", "fp32"] = Field(
        default="int8", description="what the network will run as: statically quantized, or in floating point"
    )
    batch: int = Field(default=1, ge=1, description="samples per run")
    threads: int = Field(default=1, ge=1, description="threads of a run")
    seconds: float = Field(
        default=40.0, gt=0, description="time for the measurements, about; less time, fewer widths to choose from"
    )


class LadderSpec(Frozen):
    """Which budgets."""

    targets: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08),
        min_length=1,
        description="budgets, as shares of what the unpruned network takes",
    )
    objective: Literal["latency", "size", "both"] = Field(
        default="latency",
        description="what the targets are shares of: milliseconds of a run, bytes of the file, or both, of which "
        "milliseconds count two thirds and bytes one third",
    )


class AllocateSpec(SensitivitySpec, TableSpec, LadderSpec):
    """How much of each layer to keep for a list of budgets."""


SENSITIVITY = Stage(
    name="sensitivity",
    pool="torch",
    entry="tasks.allocate.sensitivity_child:main",
    libraries=("torch", "torch-pruning"),
)
LATENCY_TABLE = Stage(
    name="latency_table",
    pool="numbers",
    entry="tasks.allocate.latency_child:main",
    libraries=("onnxruntime", "onnx", "numpy"),
    seed_matters=False,
    device_matters=False,
    workload_matters=False,  # layers of equal shapes take equally long, whatever they have learned
    cpu_class_matters=True,
    machine_matters=True,
    exclusive=True,
)
ALLOCATE = Stage(
    name="allocate",
    pool="numbers",
    entry="tasks.allocate.allocate_child:main",
    seed_matters=False,
    device_matters=False,
    workload_matters=False,
)


@step(SENSITIVITY)
def find_damage(job: Job, spec: AllocateSpec, *, data: DataRef, parent: Variant, label: str = "") -> Outcome:
    """Measure what narrowing each group of coupled layers of the torch variant does to its answers.

    The first stage of :func:`allocate`, for whoever wants to know before: that one finds it stored.

    Values: ``answer_seconds`` and ``row_seconds`` (what a row takes to be answered, and in a training step),
    ``augments`` (whether the workload changes training rows), ``offers`` (arguments of its ``model()`` that make other
    networks); ``structure`` (layers and groups), ``damages`` (by group: channels left and damage), ``rows`` that were
    asked, ``left_alone`` (layers that forward() counts on, and why); or ``refused``: why the model cannot be narrowed.
    """
    return _find_damage(job, spec, data, parent, label)


@step(ALLOCATE)
def allocate(job: Job, spec: AllocateSpec, *, data: DataRef, parent: Variant, label: str = "") -> Outcome:
    """Find, for each target, the channels to remove from each layer of the torch variant for the least damage.

    Three stages: ``sensitivity`` narrows one group of coupled layers at a time and compares the answers,
    ``latency_table`` times the layers at every width in question (alone on the machine), ``allocate`` chooses. The
    damages of groups are taken to add up, and so are the times of layers: both say where to look, and the pruned
    models' own measurements decide.

    Args:
        label: names the stages, where one run allocates several times.

    Values: ``ladder``, a rung per target, largest first: ``target``, ``reached``, ``ratios`` (for ``PruneSpec.ratios``;
    every group by its first layer), ``keep`` (channels left), ``predicted_ms``, ``predicted_bytes``,
    ``predicted_damage``; ``parent`` (``ms`` and ``bytes`` as predicted for the unpruned network); ``groups`` (``name``,
    ``layers``, ``width``, ``damages`` as pairs of channels left and damage). A rung that is not ``reached`` is the
    cheapest that was found. Empty where the run is only planned.

    Raises:
        PruningRefused: the model cannot be traced, or there is nothing to prune.
    """
    sensitivity = _find_damage(job, spec, data, parent, label)
    if "refused" in sensitivity.values:
        raise PruningRefused(sensitivity.values["refused"])
    structure = sensitivity.values.get("structure")
    table = run_stage(LATENCY_TABLE, job, _part(spec, TableSpec), extra={"structure": structure}, label=label)
    found = {"structure": structure, "damages": sensitivity.values.get("damages"), "table": table.values.get("table")}
    chosen = run_stage(ALLOCATE, job, _part(spec, LadderSpec), extra=found, label=label)
    return chosen.model_copy(update={"cost_seconds": chosen.cost_seconds + table.cost_seconds})


def _find_damage(job: Job, spec: AllocateSpec, data: DataRef, parent: Variant, label: str) -> Outcome:
    part = _part(spec, SensitivitySpec)
    return run_stage(SENSITIVITY, job, part, data=data, inputs={"parent": parent}, label=label)


def _part(spec: AllocateSpec, part: type[SpecPart]) -> SpecPart:
    """The fields of one stage, so that a change of the others leaves its result in the cache."""
    return part.model_validate(spec.model_dump(include=set(part.model_fields)))
