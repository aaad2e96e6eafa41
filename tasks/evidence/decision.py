"""The gates as rows of numbers and limits, and the decision they lead to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from model_registry.manifest import FileEntry
from model_registry.measurement import MetricEstimate, PairedComparison
from model_registry.variant import Frozen, Record
from tasks.evidence.number_text import gate_number

Severity = Literal["critical", "warning"]
Unit = Literal["loss", "metric", "ms", "bytes", "ratio"]


class GateRow(Frozen):
    """One gate: a number, its limit, and what it means. ``at_most`` False: the limit is a minimum."""

    gate: str
    meaning: str
    value: float
    limit: float
    unit: Unit
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
    metric: MetricEstimate
    per_class: dict[str, MetricEstimate] = Field(default_factory=dict)
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
    flips: FileEntry | None = None
    """Samples of the split on which the chosen variant and the baseline differ; None where they are the same one."""

    @property
    def warnings(self) -> tuple[GateResult, ...]:
        return tuple(g for g in self.gates if not g.passed and g.severity == "warning")

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
