"""The variants as points of a plot: what both the page's drawing and pareto.png show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from model_registry.form_name import name_parts
from model_registry.measurement import Interval
from model_registry.sizes import KB, size_text
from tasks.evidence.number_text import metric_range, metric_text, ms_range, ms_text
from tasks.report.run_report import RunReport, VariantRow

FORMS = ("circle", "diamond", "triangle", "cross")
"""Marks, by form: float first, then the others in the order of the table."""
KINDS = ("teacher", "student", "control", "pruned", "cut")
"""Families of a search, whose candidates are too many for a colour each."""
Axis = Literal["latency", "size"]
"""What lies across: median latency in ms, or file size in bytes."""
_ALL_LABELLED = 14
"""More points than this have a label only where they matter; the others tell their name when pointed at."""


@dataclass(frozen=True)
class PlotPoint:
    """One variant: latency in ms, metric, their 95 % intervals, and how it is drawn."""

    name: str
    digest: str
    latency: float
    latency_interval: Interval
    p95: float
    bytes: int
    metric: float
    metric_interval: Interval
    radius: float
    """In pixels; the area grows with the file size."""
    colour: int
    """Index of its family: the model it is a form of (``student`` of ``student.int8-static``); in a search its kind."""
    form: int
    """Index into FORMS: what was done to the exported model."""
    pareto: bool
    chosen: bool
    baseline: bool
    best: bool
    """The cheapest one inside the budget on validation, where it is not the one chosen."""
    fails: bool
    """Whether a gate would refuse it, as the search found on validation."""
    tooltip: str

    @property
    def strong(self) -> bool:
        """Whether it is drawn in full colour."""
        return self.pareto or self.marked

    @property
    def marked(self) -> bool:
        """Whether it has a ring around it."""
        return self.chosen or self.baseline or self.best

    @property
    def label(self) -> str:
        mark = "chosen" if self.chosen else "baseline" if self.baseline else "best on validation" if self.best else ""
        return f"{self.name} · {mark}" if mark else self.name

    def across(self, axis: Axis) -> float:
        """Where it lies on the axis: ms, or kB."""
        return self.latency if axis == "latency" else self.bytes / KB

    def across_interval(self, axis: Axis) -> Interval:
        """Its 95 % interval there; a size is known exactly."""
        return self.latency_interval if axis == "latency" else (self.bytes / KB, self.bytes / KB)


def plot_points(report: RunReport) -> list[PlotPoint]:
    """A point per variant, in the order of the table."""
    largest = max((row.bytes for row in report.variants), default=1)
    families, forms = plot_families(report), plot_forms(report)
    crowd = 0.7 if len(report.variants) > _ALL_LABELLED else 1.0
    fails = {f.digest: f.fails for c in report.search.candidates for f in c.forms} if report.search else {}
    best = report.search.best if report.search else None
    return [
        PlotPoint(
            name=row.name,
            digest=row.digest,
            latency=row.p50_ms,
            latency_interval=row.latency_interval.p50,
            p95=row.p95_ms,
            bytes=row.bytes,
            metric=row.metric.value,
            metric_interval=row.metric.interval,
            radius=crowd * (5.0 + 9.0 * math.sqrt(row.bytes / largest)),
            colour=families.index(family_of(row, report)),
            form=min(forms.index(_form(row)), len(FORMS) - 1),
            pareto=row.pareto,
            chosen=row.digest == report.chosen,
            baseline=row.digest == report.baseline,
            best=row.digest == best != report.chosen,
            fails=bool(fails.get(row.digest)),
            tooltip=_tooltip(row, report, fails.get(row.digest, ())),
        )
        for row in report.variants
    ]


def labelled(points: list[PlotPoint], line: list[PlotPoint]) -> list[PlotPoint]:
    """The points whose names are written beside them: all of a few; of many those marked or on the frontier."""
    if len(points) <= _ALL_LABELLED:
        return points
    wanted = {p.digest for p in points if p.marked}
    near = sorted(line, key=lambda p: p.fails)[: _ALL_LABELLED - len(wanted)]
    wanted |= {p.digest for p in near}
    return [p for p in points if p.digest in wanted]


def plot_families(report: RunReport) -> list[str]:
    """The models that the variants are forms of, in the order of the table; their index is their colour."""
    if report.search is not None:
        return list(KINDS)
    return list(dict.fromkeys(family_of(row, report) for row in report.variants))


def plot_forms(report: RunReport) -> list[str]:
    """The forms that occur; their index is their mark."""
    return list(dict.fromkeys(_form(row) for row in report.variants))


def family_of(row: VariantRow, report: RunReport) -> str:
    """The model that the variant is a form of; in a search its kind: teacher, student, control or pruned."""
    if report.search is None:
        return name_parts(row.name)[0]
    kinds = {form.digest: c.kind for c in report.search.candidates for form in c.forms}
    return kinds.get(row.digest, "teacher" if row.digest == report.baseline else "control")


def _form(row: VariantRow) -> str:
    return name_parts(row.name)[1] or row.stage


def frontier(points: list[PlotPoint], *, higher_is_better: bool, axis: Axis = "latency") -> list[PlotPoint]:
    """The points that no faster (or smaller) one beats in the metric, from the left: the line through the plot."""
    sign = 1.0 if higher_is_better else -1.0
    line: list[PlotPoint] = []
    for point in sorted(points, key=lambda p: (p.across(axis), -sign * p.metric)):
        if not line or sign * point.metric > sign * line[-1].metric:
            line.append(point)
    return line


def _tooltip(row: VariantRow, report: RunReport, fails: tuple[str, ...]) -> str:
    name = report.metric.name if report.metric else "metric"
    return (
        f"{row.name} ({row.stage}): {name} {metric_text(row.metric.value, name)} "
        f"[{metric_range(row.metric.interval, name)}], p50 {ms_text(row.p50_ms)} ms "
        f"[{ms_range(row.latency_interval.p50)}], p95 {ms_text(row.p95_ms)} ms, {size_text(row.bytes)}"
        + (f"; would fail {', '.join(gate.replace('_', ' ') for gate in fails)}" if fails else "")
    )
