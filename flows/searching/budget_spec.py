"""A budget in, the best variant that keeps it out: what a person may ask for, and how long the search may take."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from model_registry.measurement import Objective as Objective
from model_registry.variant import Frozen


class BudgetSpec(Frozen):
    """What the variant may lose and cost. Any subset."""

    max_accuracy_drop: float | None = Field(
        default=None,
        gt=0,
        description="largest loss of the metric against the baseline, in its own unit (0.005: half a point of "
        "accuracy); its one-sided 95 % bound must stay within; absent: 0.02",
    )
    p95_ms: float | None = Field(default=None, gt=0, description="slowest 95th percentile latency accepted, in ms")
    max_bytes: int | None = Field(default=None, gt=0, description="largest model file accepted, in bytes")
    threads: int | None = Field(
        default=None, ge=1, description="intra-op threads that all files are measured and served with; absent: 1"
    )
    batch: int | None = Field(
        default=None, ge=1, description="samples per request; latency and throughput are of such requests; absent: 1"
    )


class SearchSpec(Frozen):
    """How to look for the best variant inside the budget: successive halving, best first.

    ``distill``, ``prune``, ``quantize`` and ``qat`` say how one candidate is made; widths and ratios are the search's
    to choose. Source: Jamieson and Talwalkar 2016, arXiv:1502.07943.
    """

    minutes: float = Field(
        default=20.0, gt=0, description="time for training and measuring candidates, in all runs of this search"
    )
    trials: int = Field(default=40, ge=1, description="at most so many trainings, short ones included")
    parallel: int = Field(default=1, ge=1, le=64, description="trainings at a time; they share the cores evenly")
    shrink: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        default=(0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08),
        description="shares of the teacher's latency (or size, by the objective) that pruned candidates are made for",
    )
    students: tuple[dict[str, Any], ...] = Field(
        default=(),
        description="scales of narrower or shallower students besides, such as [{width: 0.5}]; those that have most of "
        "the teacher's layers, such as {depth: 0.34}, begin with their weights and are narrowed to the same shares",
    )
    rungs: int = Field(default=3, ge=1, le=6, description="stages of a candidate's training; bad ones end early")
    eta: float = Field(
        default=3.0, gt=1, description="a rung trains so many times longer than the one before; distill.epochs in all"
    )
    qat: bool = Field(
        default=True,
        description="quantization-aware training as the last rung, where int8 costs too much accuracy; as `qat` says",
    )
    control: bool = Field(
        default=True, description="train the winner's structure once more without the teacher, to show what that gained"
    )
    fresh: bool = Field(
        default=False,
        description="search on even where a candidate stored by an earlier search keeps the budget already",
    )
