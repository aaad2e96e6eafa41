"""What the chosen variant must keep, and which variant is chosen."""

from __future__ import annotations

from pydantic import Field

from model_registry.measurement import Objective
from model_registry.variant import Frozen

STRUCTURAL = ("latency", "size")
"""Gates that hang on a model's structure alone: training changes nothing about them."""


class GateSpec(Frozen):
    """The gates. Losses and floors are in the metric's own unit: for accuracy 0.02 is two points."""

    margin: float = Field(
        default=0.02,
        gt=0,
        description="largest loss against the baseline that is tolerable; its one-sided 95 % bound must stay within",
    )
    champion_margin: float | None = Field(
        default=None, gt=0, description="the same against the champion in service; absent: as margin"
    )
    floor: float | None = Field(
        default=None, description="worst metric accepted on the test split: a minimum, a maximum where lower is better"
    )
    per_class_margin: float | None = Field(
        default=0.1, gt=0, description="largest loss of any single class against the baseline; null: not looked at"
    )
    max_p95_ms: float | None = Field(default=None, gt=0, description="slowest 95th percentile latency accepted, in ms")
    max_bytes: int | None = Field(default=None, gt=0, description="largest model file accepted, in bytes")
    objective: Objective = Field(
        default="latency",
        description="what counts among the variants that pass on validation: least latency, smallest file, or most "
        "samples per second",
    )
    allow_baseline: bool = Field(
        default=False, description="release the uncompressed baseline where no compressed variant passes on validation"
    )

    @property
    def margin_to_champion(self) -> float:
        return self.margin if self.champion_margin is None else self.champion_margin
