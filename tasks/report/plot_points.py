"""The variants as points of a plot: what both the page's drawing and pareto.png show."""

from __future__ import annotations

import math
from dataclasses import dataclass

from model_registry.measurement import Interval
from tasks.evidence.number_text import metric_range, metric_text, ms_range, ms_text, size_text
from tasks.report.run_report import RunReport, VariantRow

FORMS = ("circle", "diamond", "triangle", "cross")
"""Marks, by form: float first, then the others in the order of the table."""


@dataclass(frozen=True)
class PlotPoint:
    """One variant: latency in ms, metric, their 95 % intervals, and how it is drawn."""

    name: str
    latency: float
    latency_interval: Interval
    metric: float
    metric_interval: Interval
    radius: float
    """In pixels; the area grows with the file size."""
    colour: int
    """Index of its family: the model it is a form of (``student`` of ``student.int8-static``)."""
    form: int
    """Index into FORMS: what was done to the exported model."""
    pareto: bool
    chosen: bool
    baseline: bool
    tooltip: str


def plot_points(report: RunReport) -> list[PlotPoint]:
    """A point per variant, in the order of the table."""
    largest = max((row.bytes for row in report.variants), default=1)
    families, forms = plot_families(report), plot_forms(report)
    return [
        PlotPoint(
            name=row.name,
            latency=row.p50_ms,
            latency_interval=row.latency_interval.p50,
            metric=row.metric.value,
            metric_interval=row.metric.interval,
            radius=5.0 + 9.0 * math.sqrt(row.bytes / largest),
            colour=families.index(_family(row)),
            form=min(forms.index(_form(row)), len(FORMS) - 1),
            pareto=row.pareto,
            chosen=row.digest == report.chosen,
            baseline=row.digest == report.baseline,
            tooltip=_tooltip(row, report),
        )
        for row in report.variants
    ]


def plot_families(report: RunReport) -> list[str]:
    """The models that the variants are forms of, in the order of the table; their index is their colour."""
    return list(dict.fromkeys(_family(row) for row in report.variants))


def plot_forms(report: RunReport) -> list[str]:
    """The forms that occur; their index is their mark."""
    return list(dict.fromkeys(_form(row) for row in report.variants))


def _family(row: VariantRow) -> str:
    return row.name.partition(".")[0]


def _form(row: VariantRow) -> str:
    return row.name.partition(".")[2] or row.stage


def frontier(points: list[PlotPoint], *, higher_is_better: bool) -> list[PlotPoint]:
    """The points that no faster one beats in the metric, by latency: the line through the plot."""
    sign = 1.0 if higher_is_better else -1.0
    line: list[PlotPoint] = []
    for point in sorted(points, key=lambda p: (p.latency, -sign * p.metric)):
        if not line or sign * point.metric > sign * line[-1].metric:
            line.append(point)
    return line


def _tooltip(row: VariantRow, report: RunReport) -> str:
    name = report.metric.name if report.metric else "metric"
    return (
        f"{row.name} ({row.stage}): {name} {metric_text(row.metric.value, name)} "
        f"[{metric_range(row.metric.interval, name)}], p50 {ms_text(row.p50_ms)} ms "
        f"[{ms_range(row.latency_interval.p50)}], {size_text(row.bytes)}"
    )
