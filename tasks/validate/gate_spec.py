"""What the chosen variant must keep, and which variant is chosen."""

from __future__ import annotations

from pydantic import Field

from model_registry.measurement import Objective
from model_registry.variant import Frozen
from tasks.evidence.number_text import share_of_baseline

_SMALLEST = 1e-12
"""Of a baseline without any error: what equals it still passes."""
STRUCTURAL = ("latency", "size", "speedup", "shrink", "fpga")
"""Gates that depend on a model's structure alone: training changes nothing about them."""


class GateSpec(Frozen):
    """What the chosen variant must keep besides the budget. Losses and floors are in the metric's own unit: for
    accuracy 0.02 is two points.

    What is marked as deprecated is the budget's to say: the values come from there, and from specs of before.
    """

    margin: float = Field(
        default=0.02, gt=0, description="older name of budget.max_accuracy_drop", json_schema_extra={"deprecated": True}
    )
    relative_margin: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="what budget.max_relative_drop says",
        json_schema_extra={"deprecated": True},
    )
    champion_margin: float | None = Field(
        default=None,
        gt=0,
        description="largest acceptable loss against the champion in service; its one-sided 95 % bound must stay "
        "within; absent: as against the baseline",
    )
    floor: float | None = Field(
        default=None,
        description="worst acceptable metric on the test split: a minimum, or a maximum where lower is better",
    )
    per_class_margin: float | None = Field(
        default=0.1,
        gt=0,
        description="largest acceptable loss within a single class against the baseline: refused is what is shown to "
        "lose more (95 %, corrected for the number of classes); null: not checked",
    )
    max_p95_ms: float | None = Field(
        default=None, gt=0, description="older name of budget.p95_ms", json_schema_extra={"deprecated": True}
    )
    max_bytes: int | None = Field(
        default=None, gt=0, description="older name of budget.max_bytes", json_schema_extra={"deprecated": True}
    )
    min_speedup: float | None = Field(
        default=None,
        gt=1,
        allow_inf_nan=False,
        description="what budget.min_speedup says",
        json_schema_extra={"deprecated": True},
    )
    min_shrink: float | None = Field(
        default=None,
        gt=1,
        allow_inf_nan=False,
        description="what budget.min_shrink says",
        json_schema_extra={"deprecated": True},
    )
    max_luts: int | None = Field(
        default=None, gt=0, description="what budget.max_luts says", json_schema_extra={"deprecated": True}
    )
    max_choice_drop: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="what budget.max_choice_drop says",
        json_schema_extra={"deprecated": True},
    )
    min_tokens_per_second: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="what budget.min_tokens_per_second says",
        json_schema_extra={"deprecated": True},
    )
    max_ttft_ms: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="what budget.max_ttft_ms says",
        json_schema_extra={"deprecated": True},
    )
    objective: Objective = Field(
        default="both", description="older name of objective", json_schema_extra={"deprecated": True}
    )
    allow_baseline: bool = Field(
        default=False, description="release the uncompressed baseline where no compressed variant passes on validation"
    )

    def resolved(self, baseline: float) -> GateSpec:
        """The same with the margin in the metric's unit; ``baseline``: its metric on the split that is judged.

        A margin that is resolved stays as it is.
        """
        if self.relative_margin is None:
            return self
        margin = max(self.relative_margin * abs(baseline), _SMALLEST)
        return self.model_copy(update={"margin": margin, "relative_margin": None})

    def margin_text(self) -> str:
        """``0.02``; before it is resolved ``1 % of the baseline's metric``."""
        return f"{self.margin:g}" if self.relative_margin is None else share_of_baseline(self.relative_margin)

    @property
    def margin_to_champion(self) -> float:
        return self.margin if self.champion_margin is None else self.champion_margin
