"""The gates as rows of numbers and limits, and the decision they lead to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from model_registry.measurement import Metric, PairedComparison
from model_registry.variant import Frozen, Record

Severity = Literal["critical", "warning"]


class GateRow(Frozen):
    """One gate: a number, its limit, and what it means. ``at_most`` False: the limit is a minimum."""

    gate: str
    meaning: str
    value: float
    limit: float
    at_most: bool = True
    severity: Severity = "critical"

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
    metric: Metric
    per_class: dict[str, Metric] = Field(default_factory=dict)
    to_baseline: PairedComparison | None = None
    to_champion: PairedComparison | None = None


class Decision(Record):
    """What the gates said about the chosen variant, on the test split."""

    status: Literal["passed", "refused"]
    chosen: str
    baseline: str
    champion: str | None
    reason: str
    """Why this variant was chosen on validation."""
    samples: int
    scored: tuple[Scored, ...]
    gates: tuple[GateResult, ...]

    @property
    def warnings(self) -> tuple[GateResult, ...]:
        return tuple(g for g in self.gates if not g.passed and g.severity == "warning")

    def gate_table(self) -> str:
        """The gates as aligned text, a line each."""
        lines = []
        for gate in self.gates:
            mark = "ok  " if gate.passed else ("FAIL" if gate.severity == "critical" else "warn")
            sign = "<=" if gate.at_most else ">="
            lines.append(f"  {mark}  {gate.gate:<26} {gate.value:>12.6g} {sign} {gate.limit:<10.6g}  {gate.meaning}")
        return "\n".join(lines)
