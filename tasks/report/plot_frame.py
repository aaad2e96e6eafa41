"""The frame of a plot: its two scales, the limits drawn as lines, and what lies below its lower edge."""

from __future__ import annotations

from dataclasses import dataclass

from model_registry.sizes import KB, size_text
from tasks.evidence.number_text import is_share, metric_text, ms_text, points
from tasks.report.budget_limits import BudgetLimits
from tasks.report.plot_points import Axis, PlotPoint, frontier
from tasks.report.run_report import MetricName, RunReport

_DEPTH = 6.0
"""A search tries hopeless candidates too: the plot ends this number of margins below the baseline."""


@dataclass(frozen=True)
class AxisScale:
    """What an axis shows, linearly or as a logarithm."""

    low: float
    high: float
    log: bool

    def inside(self, value: float) -> float:
        """The value, or the end that it lies beyond."""
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class LimitLine:
    """A limit at ``value``, in the axis's unit."""

    value: float
    text: str


@dataclass(frozen=True)
class PlotFrame:
    """``across`` in ms or kB, ``up`` in the metric's unit or percent (``factor`` times the metric).

    ``least`` is the horizontal line of the tolerable metric, ``most`` the vertical one of the latency or size.
    ``beyond``: limits that lie too far outside to be drawn, in words. Points below ``up`` lie on its lower edge.
    """

    axis: Axis
    higher: bool
    factor: float
    across: AxisScale
    up: AxisScale
    least: LimitLine | None
    most: LimitLine | None
    beyond: tuple[str, ...]

    def below(self, point: PlotPoint) -> bool:
        """Whether the point is worse than the plot shows."""
        value = self.factor * point.metric
        return value < self.up.low if self.higher else value > self.up.high

    def frontier(self, drawn: list[PlotPoint]) -> list[PlotPoint]:
        """The line through the plot, without what is worse than it shows."""
        shown = [p for p in drawn if not self.below(p)] or drawn
        return frontier(shown, higher_is_better=self.higher, axis=self.axis)

    def titles(self, report: RunReport) -> tuple[str, str]:
        """What the horizontal and the vertical axis say."""
        assert report.metric is not None
        batch = report.conditions.batch if report.conditions else 1
        unit = " (%)" if self.factor != 1.0 else ""
        log = " (log scale)" if self.across.log else ""
        request = f"median latency of a request of {batch} sample{'s' * (batch > 1)}, ms"
        across = request if self.axis == "latency" else "file size, kB"
        return f"{across}{log} — left is better", f"{report.metric.name}{unit} — up is better"


def plot_frame(
    drawn: list[PlotPoint], metric: MetricName, limits: BudgetLimits, *, axis: Axis, deep: bool
) -> PlotFrame:
    """The frame around the points.

    Args:
        drawn: at least one point.
        deep: show every point, however much worse than the baseline it is.
    """
    higher, factor = metric.better == "higher", 100.0 if is_share(metric.name) else 1.0
    sign = 1.0 if higher else -1.0
    baseline = next((p for p in drawn if p.baseline), None)
    ups = [factor * v for p in drawn for v in p.metric_interval]
    least = None
    if baseline is not None and limits.margin is not None:
        lowest = baseline.metric - sign * limits.margin
        text = f"{metric_text(lowest, metric.name)}: baseline less {points(limits.margin, metric.name)}"
        least = LimitLine(factor * lowest, text)
        if not deep:
            floor = factor * (baseline.metric - sign * _DEPTH * limits.margin)
            ups = [max(v, floor) if higher else min(v, floor) for v in ups]
    acrosses = [v for p in drawn for v in p.across_interval(axis)]
    most = None
    if axis == "latency" and limits.p95_ms is not None:
        most = LimitLine(limits.p95_ms, f"p95 limit {ms_text(limits.p95_ms)} ms")
        acrosses += [p.p95 for p in drawn if p.marked]
    elif axis == "size" and limits.bytes is not None:
        most = LimitLine(limits.bytes / KB, f"size limit {size_text(limits.bytes)}")
    far = [least] if least and not _level(least, ups) else []
    far += [most] if most and not _beside(most, acrosses) else []
    least, most = (None if line in far else line for line in (least, most))
    across = fit_scale([*acrosses, *([most.value] if most else [])], log=True)
    up = fit_scale([*ups, *([least.value] if least else [])])
    return PlotFrame(axis, higher, factor, across, up, least, most, tuple(line.text for line in far))


def fit_scale(values: list[float], *, log: bool = False) -> AxisScale:
    """A scale with some air around the values.

    Args:
        log: use a logarithm where the values are positive and span more than a factor of four.
    """
    low, high = min(values), max(values)
    if log and low > 0 and high / low > 4:
        air = (high / low) ** 0.08
        return AxisScale(low / air, high * air, True)
    air = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
    return AxisScale(low - air, high + air, False)


def tick_text(value: float) -> str:
    """A tick without trailing zeros or exponents."""
    return f"{value:.10f}".rstrip("0").rstrip(".") if abs(value) < 1e6 else f"{value:g}"


def _level(line: LimitLine, values: list[float]) -> bool:
    """Whether the plot need not become more than twice as high to hold the line."""
    low, high = min(values), max(values)
    room = (high - low) or 0.2 * abs(high)
    return low - room <= line.value <= high + room


def _beside(line: LimitLine, values: list[float]) -> bool:
    """The same across, where the scale is a logarithm as a rule: within a factor of three."""
    return min(values) / 3 <= line.value <= 3 * max(values)
