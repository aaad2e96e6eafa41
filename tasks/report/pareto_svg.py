"""The plot of the page: metric against latency as an SVG that takes its colours from the page's style sheet."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from tasks.evidence.number_text import is_share
from tasks.report.axis_scale import AxisScale, fit_scale, tick_text
from tasks.report.label_layout import Box, Spot, place_labels, staircase
from tasks.report.plot_points import FORMS, PlotPoint, frontier, plot_families, plot_forms, plot_points
from tasks.report.run_report import RunReport

WIDTH, HEIGHT = 960, 520
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 24, 20, 58
_CHARACTER, _LINE = 7.2, 16.0  # of the 13 px label font


def pareto_svg(report: RunReport) -> str:
    """SVG of all variants with error bars and labels; empty where nothing was measured."""
    points = plot_points(report)
    if not points or report.metric is None:
        return ""
    higher, factor = report.metric.better == "higher", 100.0 if is_share(report.metric.name) else 1.0
    across = fit_scale([v for p in points for v in p.latency_interval], log=True)
    up = fit_scale([factor * v for p in points for v in p.metric_interval])

    def x(latency: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * across.place(latency)

    def y(metric: float) -> float:
        share = up.place(factor * metric)
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * ((1 - share) if higher else share)  # better is always up

    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(report.metric.name)} against latency of every variant">',
        *_axes(across, up, x, lambda v: y(v / factor), _titles(report, across)),
    ]
    corners = [(x(p.latency), y(p.metric)) for p in frontier(points, higher_is_better=higher)]
    steps = "".join(f"H{cx:.1f}V{cy:.1f}" for cx, cy in corners[1:])
    parts.append(f'<path class="frontier" d="M{corners[0][0]:.1f},{corners[0][1]:.1f}{steps}H{WIDTH - _RIGHT}"/>')
    bars = staircase([*corners, (float(WIDTH - _RIGHT), corners[-1][1])])
    for point in points:
        (left, right), (low, high) = point.latency_interval, point.metric_interval
        horizontal = Box(x(left), y(point.metric) - 1, x(right), y(point.metric) + 1)
        ends = sorted((y(low), y(high)))
        vertical = Box(x(point.latency) - 1, ends[0], x(point.latency) + 1, ends[1])
        bars += [horizontal, vertical]
        parts.append(
            f'<path class="bar s{point.colour % 6}{_faded(point)}" d="M{horizontal.left:.1f},{y(point.metric):.1f}'
            f'H{horizontal.right:.1f}M{x(point.latency):.1f},{vertical.low:.1f}V{vertical.high:.1f}"/>'
        )
    spots = [
        Spot(x(p.latency), y(p.metric), p.radius + 5 * (p.chosen or p.baseline), _CHARACTER * len(_text(p)), _LINE)
        for p in points
    ]
    canvas = Box(_LEFT + 2, _TOP, WIDTH - 4, HEIGHT - _BOTTOM - 2)
    for point, spot, label in zip(points, spots, place_labels(spots, bars, canvas), strict=True):
        parts.append(f'<g class="point s{point.colour % 6}{_faded(point)}"><title>{escape(point.tooltip)}</title>')
        if label.leader:
            x1, y1, x2, y2 = label.leader
            parts.append(f'<path class="leader" d="M{x1:.1f},{y1:.1f}L{x2:.1f},{y2:.1f}"/>')
        parts.append(_mark(point, spot))
        anchor = (label.box.left + label.box.right) / 2
        weight = " strong" if point.chosen or point.baseline else ""
        place = f'x="{anchor:.1f}" y="{label.box.high - 4:.1f}"'
        parts.append(f'<text class="label{weight}" {place}>{escape(_text(point))}</text></g>')
    return "".join([*parts, "</svg>"])


def _text(point: PlotPoint) -> str:
    return point.name + (" · chosen" if point.chosen else " · baseline" if point.baseline else "")


def _faded(point: PlotPoint) -> str:
    return "" if point.pareto or point.chosen or point.baseline else " faded"


def _mark(point: PlotPoint, spot: Spot) -> str:
    ring = ""
    if point.chosen or point.baseline:
        kind = "ring" if point.chosen else "ring base"
        ring = f'<circle class="{kind}" cx="{spot.x:.1f}" cy="{spot.y:.1f}" r="{spot.radius:.1f}"/>'
    return ring + mark_svg(FORMS[point.form], spot.x, spot.y, point.radius)


def mark_svg(form: str, x: float, y: float, radius: float) -> str:
    """A mark of about equal area whatever its form."""
    if form == "circle":
        return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>'
    r = 1.25 * radius
    corners = {
        "diamond": ((0, -r), (r, 0), (0, r), (-r, 0)),
        "triangle": ((0, -1.15 * r), (1.1 * r, 0.8 * r), (-1.1 * r, 0.8 * r)),
        "cross": ((-r, -r / 2), (-r, r / 2), (r, r / 2), (r, -r / 2)),
    }[form]
    return f'<path class="dot" d="M{"L".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)}Z"/>'


def legend(report: RunReport) -> list[tuple[str, str]]:
    """(small SVG, text) of every colour and mark in the plot."""

    def sample(form: str, colour: str) -> str:
        return f'<svg class="key {colour}" viewBox="0 0 16 16">{mark_svg(form, 8, 8, 5)}</svg>'

    families = [(sample("circle", f"s{i % 6}"), name) for i, name in enumerate(plot_families(report))]
    forms = [(sample(FORMS[min(i, len(FORMS) - 1)], "plain"), name) for i, name in enumerate(plot_forms(report))]
    return families + (forms if len(forms) > 1 else [])


def _titles(report: RunReport, across: AxisScale) -> tuple[str, str]:
    assert report.metric is not None
    batch = report.conditions.batch if report.conditions else 1
    unit = " (%)" if is_share(report.metric.name) else ""
    request = f"median latency of a request of {batch} sample{'s' * (batch > 1)}"
    return f"{request}, ms{' (log scale)' * across.log} — left is better", f"{report.metric.name}{unit} — up is better"


def _axes(
    across: AxisScale,
    up: AxisScale,
    x: Callable[[float], float],
    y: Callable[[float], float],
    titles: tuple[str, str],
) -> list[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for tick in across.ticks:
        parts.append(f'<path class="grid" d="M{x(tick):.1f},{_TOP}V{bottom}"/>')
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 20}">{tick_text(tick)}</text>')
    for tick in up.ticks:
        parts.append(f'<path class="grid" d="M{_LEFT},{y(tick):.1f}H{right}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 10}" y="{y(tick) + 4:.1f}">{tick_text(tick)}</text>')
    middle = (_TOP + bottom) / 2
    parts.append(f'<text class="title" x="{(_LEFT + right) / 2}" y="{HEIGHT - 12}">{escape(titles[0])}</text>')
    parts.append(f'<text class="title" transform="translate(18 {middle}) rotate(-90)">{escape(titles[1])}</text>')
    return parts
