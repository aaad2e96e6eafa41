"""A budget in, the best variant that keeps it out: what a person may ask for, and how long the search may take."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

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
    max_relative_drop: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="the same as a share of the baseline's own metric on each split, instead of max_accuracy_drop "
        "(0.01: the error may grow by one percent; where higher is better, the metric may fall by one percent of its "
        "value)",
    )
    max_nats_increase: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="max_accuracy_drop under the name that it has for language models: how much more a token may cost, "
        "in nats",
    )
    max_choice_drop: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="of a language model with questions: largest loss of multiple-choice accuracy against the baseline "
        "(0.02: two points), by the sum of log-probabilities; its one-sided 95 % bound must stay within",
    )
    min_tokens_per_second: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="of a language model: tokens per second that one answer must have at least, after its first token",
    )
    max_ttft_ms: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="of a language model: largest acceptable time from a prompt, as long as a row, to the first token "
        "of its answer, in ms",
    )
    p95_ms: float | None = Field(
        default=None, gt=0, description="largest acceptable 95th percentile of the latency, in ms"
    )
    max_bytes: int | None = Field(default=None, gt=0, description="largest acceptable size of the model file, in bytes")
    min_speedup: float | None = Field(
        default=None,
        gt=1,
        allow_inf_nan=False,
        description="how many times as fast as the baseline the variant must be at least; the lower end of the "
        "speed-up's 95 % interval counts",
    )
    min_shrink: float | None = Field(
        default=None,
        gt=1,
        allow_inf_nan=False,
        description="how many times smaller than the baseline's file the variant's must be at least",
    )
    max_luts: int | None = Field(
        default=None,
        gt=0,
        description="largest acceptable number of look-up tables of an FPGA, as da4ml estimates them; only static "
        "int8 files with scales that are powers of two are made then (see docs/targets.md). Needs winnow-mlops[fpga]",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="number of intra-op threads that all files are measured and served with; absent: 1",
    )
    batch: int | None = Field(
        default=None,
        ge=1,
        le=65_536,
        description="number of samples per request; latency and throughput are those of such requests; absent: 1",
    )

    @field_validator("min_speedup", "min_shrink", mode="before")
    @classmethod
    def _asks_for_something(cls, ratio: Any) -> Any:
        if isinstance(ratio, int | float) and ratio <= 1:
            raise ValueError("the baseline already meets it; give a number above 1, such as 2, or remove the key")
        return ratio


class SearchSpec(Frozen):
    """How to look for the best variant inside the budget: successive halving, best first.

    ``distill``, ``prune``, ``quantize`` and ``qat`` say how one candidate is made; widths and ratios are the search's
    to choose. Source: Jamieson and Talwalkar 2016, arXiv:1502.07943.
    """

    minutes: float = Field(
        default=20.0,
        gt=0,
        description="time for training and measuring candidates, summed over all runs of this search",
    )
    trials: int = Field(default=40, ge=1, description="maximum number of trainings, short ones included")
    parallel: int = Field(
        default=1, ge=1, le=64, description="number of trainings at a time; they share the cores evenly"
    )
    shrink: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = Field(
        default=None,
        description="costs of the pruned candidates, as shares of the teacher's (two thirds latency and one third "
        "bytes, in int8 and in fp32; bytes alone with objective size); []: none; absent: 21 from 0.7 down to "
        "0.02, as far as layers can be narrowed",
    )
    students: tuple[dict[str, Any], ...] | None = Field(
        default=None,
        description="students to try besides the pruned teacher, each given by arguments of the workload's model(), "
        "such as [{width: 0.5}]; one with most of the teacher's layers, such as {depth: 0.34}, begins with their "
        "weights and is narrowed to the shares in shrink; absent: the teacher at half its resolution, with a third of "
        "its blocks, and both, where its layers allow that, and the networks named by a parameter of model() that is "
        "annotated with Literal",
    )
    rungs: int = Field(
        default=3,
        ge=1,
        le=6,
        description="number of stages that a candidate's training is divided into; bad candidates end after an early "
        "one",
    )
    eta: float = Field(
        default=3.0,
        gt=1,
        description="how many times longer each rung trains than the one before; all rungs together train "
        "distill.epochs, or where the spec does not say, as many as the minutes allow",
    )
    qat: bool = Field(
        default=True,
        description="train in int8 (as the section qat says) as the last rung, where int8 costs too much accuracy",
    )
    control: bool = Field(
        default=False,
        description="train the winner's structure once more without the teacher, to show what the teacher gained",
    )
    train_teacher: bool = Field(
        default=False,
        description="where the first training shows that labels alone teach better than the teacher, train the teacher "
        "on for up to a fifth of the minutes and let it teach if it got better; losses are still counted against the "
        "teacher as it was",
    )
    fresh: bool = Field(
        default=False,
        description="search on even where an earlier search found a candidate inside the budget",
    )
