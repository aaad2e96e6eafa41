"""The variants as points of a plot: what both the page's drawing and pareto.png show."""

from __future__ import annotations

import math
from dataclasses import dataclass

from model_registry.measurement import Interval
from tasks.evidence.number_text import metric_range, metric_text, ms_range, ms_text, size_text
from tasks.report.run_report import RunReport, VariantRow

_STAGE_ORDER = ("export", "train", "bring", "distill", "prune", "quantize")


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
    """Index of its stage's colour."""
    pareto: bool
    chosen: bool
    baseline: bool
    tooltip: str


def plot_points(report: RunReport) -> list[PlotPoint]:
    """A point per variant, in the order of the table."""
    largest = max((row.bytes for row in report.variants), default=1)
    stages = plot_stages(report)
    return [
        PlotPoint(
            name=row.name,
            latency=row.p50_ms,
            latency_interval=row.latency_interval.p50,
            metric=row.metric.value,
            metric_interval=row.metric.interval,
            radius=5.0 + 9.0 * math.sqrt(row.bytes / largest),
            colour=stages.index(row.stage),
            pareto=row.pareto,
            chosen=row.digest == report.chosen,
            baseline=row.digest == report.baseline,
            tooltip=_tooltip(row, report),
        )
        for row in report.variants
    ]


def plot_stages(report: RunReport) -> list[str]:
    """The stages that occur, in the order of the pipeline; their index is their colour."""
    found = {row.stage for row in report.variants}
    return [s for s in _STAGE_ORDER if s in found] + sorted(found - set(_STAGE_ORDER))


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
