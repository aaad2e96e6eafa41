"""The gates as rows of numbers and limits, and the decision they lead to."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, field_serializer, field_validator

from model_registry.manifest import FileEntry
from model_registry.measurement import ClassLoss, MetricEstimate, PairedComparison
from model_registry.variant import Frozen, Record
from tasks.evidence.choice_scores import ChoiceScores
from tasks.evidence.number_text import gate_number
from tasks.evidence.split_gap import SplitGap

Severity = Literal["critical", "warning"]
Unit = Literal["loss", "metric", "ms", "bytes", "ratio", "samples", "points", "tokens/s", "LUTs"]


class GateRow(Frozen):
    """One gate: a number, its limit, and what it means. ``at_most`` False: the limit is a minimum.

    A number that is missing is NaN here and null in JSON, which has no NaN.
    """

    gate: str
    meaning: str
    value: float
    limit: float
    unit: Unit
    at_most: bool = True
    severity: Severity = "critical"

    @field_validator("value", mode="before")
    @classmethod
    def _missing(cls, given: Any) -> Any:
        return math.nan if given is None else given

    @field_serializer("value", when_used="json")
    def _without_nan(self, value: float) -> float | None:
        return None if math.isnan(value) else value

    @property
    def within(self) -> bool:
        """Whether the number keeps the limit (never for NaN)."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit


class GateResult(GateRow):
    """A gate after Great Expectations looked at it."""

    passed: bool


class Scored(Frozen):
    """A variant on one split: what the gates look at."""

    digest: str
    name: str
    role: str
    metric: MetricEstimate
    bits_per_byte: float | None = None
    """Of texts; None for models that do not continue any."""
    per_class: dict[str, MetricEstimate] = Field(default_factory=dict)
    class_losses: dict[str, ClassLoss] = Field(default_factory=dict)
    """Against the baseline, by label."""
    to_baseline: PairedComparison | None = None
    to_champion: PairedComparison | None = None
    choices: ChoiceScores | None = None
    """Of a language model with questions, on the test split's use alone."""


class SequenceMember(Frozen):
    """A variant in the fixed sequence that met the test split, in its place."""

    name: str
    digest: str
    bytes: int
    speedup: float | None = None
    """Against the baseline; None for the baseline itself, as are the comparisons."""
    validation: PairedComparison | None = None
    test: PairedComparison | None = None
    """Against the baseline; None also where it was not asked."""
    verdict: Literal["passed", "failed", "not asked"]
    failed: tuple[str, ...] = ()
    """Critical gates that refused it."""
    gap: SplitGap | None = None
    """Between the losses on the two splits; None where it was not asked."""


class Decision(Record):
    """What the gates said on the test split about the chosen variant: the last in the sequence that passed (of a front
    the best that passed), or the first where none did."""

    status: Literal["passed", "refused"]
    chosen: str
    baseline: str
    champion: str | None
    reason: str
    """Why the sequence ends with this variant, by validation, and what the test split changed about it."""
    samples: int
    scored: tuple[Scored, ...]
    gates: tuple[GateResult, ...]
    flips: FileEntry | None = None
    """Samples of the split on which the chosen variant and the baseline differ; None where they are the same one."""
    sequence: tuple[SequenceMember, ...] = ()
    """Who was to meet the test split, from the safest to the cheapest, as fixed on validation; the first that failed
    ended it. Empty in records of before."""
    front: tuple[str, ...] = ()
    """With objective front: digests of all that passed, the chosen one among them, from the safest on."""

    @property
    def warnings(self) -> tuple[GateResult, ...]:
        return tuple(g for g in self.gates if not g.passed and g.severity == "warning")

    @property
    def gap(self) -> SequenceMember | None:
        """The member whose losses on the two splits differ most surely, by more than chance; None without one."""
        found = [m for m in self.sequence if m.gap is not None and m.gap.real]
        return min(found, key=lambda m: m.gap.p if m.gap else 1.0, default=None)

    def gate_table(self) -> str:
        """The gates as aligned text, a line each."""
        metric = self.scored[0].metric.name if self.scored else ""
        rows = [
            (
                "ok" if gate.passed else "FAIL" if gate.severity == "critical" else "warn",
                gate.gate,
                gate_number(gate.value, gate.unit, metric),
                ("<= " if gate.at_most else ">= ") + gate_number(gate.limit, gate.unit, metric),
                gate.meaning,
            )
            for gate in self.gates
        ]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(5)]
        return "\n".join(
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )
