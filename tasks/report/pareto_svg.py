"""The plot of the page: metric against latency or size, as SVG that takes its colours from the page's style sheet."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from tasks.report.axis_scale import tick_text
from tasks.report.budget_limits import limits_of
from tasks.report.label_layout import Box, Spot, place_labels, staircase
from tasks.report.plot_frame import PlotFrame, plot_frame
from tasks.report.plot_points import FORMS, Axis, PlotPoint, labelled, plot_families, plot_forms, plot_points
from tasks.report.run_report import RunReport

WIDTH, HEIGHT = 960, 520
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 24, 20, 58
_CHARACTER, _LINE = 7.2, 16.0  # of the 13 px label font

Place = Callable[[float], float]


def pareto_svg(report: RunReport, axis: Axis = "latency") -> str:
    """SVG of all variants with error bars, limits and labels; empty where nothing was measured."""
    points = plot_points(report)
    if not points or report.metric is None:
        return ""
    frame = plot_frame(points, report.metric, limits_of(report), axis=axis, deep=report.search is None)

    def x(across: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * frame.across.place(across)

    def y(metric: float) -> float:
        share = frame.up.place(frame.factor * metric)
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * ((1 - share) if frame.higher else share)  # better is always up

    what = "latency" if axis == "latency" else "file size"
    limits, texts, lines = _limits(frame, x, lambda v: y(v / frame.factor))
    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(report.metric.name)} against {what} of every variant">',
        *_axes(frame, x, lambda v: y(v / frame.factor), frame.titles(report)),
        *limits,
    ]
    line = frame.frontier(points)
    corners = [(x(p.across(axis)), y(p.metric)) for p in line]
    steps = "".join(f"H{cx:.1f}V{cy:.1f}" for cx, cy in corners[1:])
    parts.append(f'<path class="frontier" d="M{corners[0][0]:.1f},{corners[0][1]:.1f}{steps}H{WIDTH - _RIGHT}"/>')
    bars = [*lines, *staircase([*corners, (float(WIDTH - _RIGHT), corners[-1][1])])]
    for point in points:
        drawing, boxes = _bars(point, frame, x, y)
        bars += boxes
        parts.append(drawing)
    named = labelled(points, line)
    named_digests = {p.digest for p in named}
    spots = {p.digest: Spot(x(p.across(axis)), y(p.metric), p.radius + 5 * p.marked, 0, 0) for p in points}
    sized = [Spot(s.x, s.y, s.radius, _CHARACTER * len(p.label), _LINE) for p in named for s in [spots[p.digest]]]
    others = [_around(spots[p.digest]) for p in points if p.digest not in named_digests]
    canvas = Box(_LEFT + 2, _TOP, WIDTH - 4, HEIGHT - _BOTTOM - 2)
    places = place_labels(sized, bars, canvas, others=[*others, *texts])
    labels = {p.digest: label for p, label in zip(named, places, strict=True)}
    for point in sorted(points, key=lambda p: (p.marked, p.strong)):  # what matters lies on top
        parts.append(f'<g class="point s{point.colour % 6}{_look(point)}"><title>{escape(point.tooltip)}</title>')
        label = labels.get(point.digest)
        if label and label.leader:
            x1, y1, x2, y2 = label.leader
            parts.append(f'<path class="leader" d="M{x1:.1f},{y1:.1f}L{x2:.1f},{y2:.1f}"/>')
        parts.append(_mark(point, spots[point.digest], frame.below(point)))
        if label:
            anchor = (label.box.left + label.box.right) / 2
            weight = " strong" if point.marked else ""
            place = f'x="{anchor:.1f}" y="{label.box.high - 4:.1f}"'
            parts.append(f'<text class="label{weight}" {place}>{escape(point.label)}</text>')
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def _bars(point: PlotPoint, frame: PlotFrame, x: Place, y: Place) -> tuple[str, list[Box]]:
    """The error bars, and how far the marked ones reach to their p95 where that is limited."""
    middle, up = x(point.across(frame.axis)), y(point.metric)
    left, right = map(x, point.across_interval(frame.axis))
    low, high = sorted(map(y, point.metric_interval))
    path = f"M{left:.1f},{up:.1f}H{right:.1f}M{middle:.1f},{low:.1f}V{high:.1f}"
    drawing = f'<path class="bar s{point.colour % 6}{_look(point)}" d="{path}"/>'
    boxes = [Box(left, up - 1, right, up + 1), Box(middle - 1, low, middle + 1, high)]
    if frame.axis == "latency" and frame.most and point.marked:
        end = x(point.p95)
        tail = f"M{middle:.1f},{up:.1f}H{end:.1f}M{end:.1f},{up - 6:.1f}V{up + 6:.1f}"
        drawing += f'<path class="tail s{point.colour % 6}" d="{tail}"/>'
        boxes.append(Box(middle, up - 1, end, up + 1))
    return drawing, boxes


def _limits(frame: PlotFrame, x: Place, y: Place) -> tuple[list[str], list[Box], list[Box]]:
    """The lines of the limits, the boxes of their texts and of themselves."""
    parts: list[str] = []
    boxes, lines, right, bottom = [], [], WIDTH - _RIGHT, HEIGHT - _BOTTOM
    if frame.least:
        place = y(frame.least.value)
        width = 6.6 * len(frame.least.text)
        boxes.append(Box(right - width, place, right, place + _LINE))
        lines.append(Box(_LEFT, place - 1, right, place + 1))
        parts.append(f'<path class="limit" d="M{_LEFT},{place:.1f}H{right}"/>')
        parts.append(f'<text class="limit end" x="{right}" y="{place + 13:.1f}">{escape(frame.least.text)}</text>')
    if frame.most:
        place, width = x(frame.most.value), 6.6 * len(frame.most.text)
        inside = place + width + 6 < right
        boxes.append(
            Box(place, _TOP, place + width + 6, _TOP + 14) if inside else Box(place - width - 6, _TOP, place, 34)
        )
        lines.append(Box(place - 1, _TOP, place + 1, bottom))
        anchor, at = ("start", place + 5) if inside else ("end", place - 5)
        parts.append(f'<path class="limit" d="M{place:.1f},{_TOP}V{bottom}"/>')
        parts.append(f'<text class="limit {anchor}" x="{at:.1f}" y="{_TOP + 11}">{escape(frame.most.text)}</text>')
    return parts, boxes, lines


def _around(spot: Spot) -> Box:
    return Box(spot.x - spot.radius, spot.y - spot.radius, spot.x + spot.radius, spot.y + spot.radius)


def _look(point: PlotPoint) -> str:
    return ("" if point.strong else " faded") + (" hollow" if point.fails else "")


def _mark(point: PlotPoint, spot: Spot, below: bool) -> str:
    ring = ""
    if point.marked:
        kind = "ring base" if point.baseline and not point.chosen else "ring"
        ring = f'<circle class="{kind}" cx="{spot.x:.1f}" cy="{spot.y:.1f}" r="{spot.radius:.1f}"/>'
    if below:
        return ring + mark_svg("downwards", spot.x, spot.y - 5, 4.0)
    return ring + mark_svg(FORMS[point.form], spot.x, spot.y, point.radius)


def mark_svg(form: str, x: float, y: float, radius: float) -> str:
    """A mark of about equal area whatever its form."""
    if form == "circle":
        return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>'
    r = 1.25 * radius
    corners = {
        "diamond": ((0, -r), (r, 0), (0, r), (-r, 0)),
        "triangle": ((0, -1.15 * r), (1.1 * r, 0.8 * r), (-1.1 * r, 0.8 * r)),
        "downwards": ((0, r), (r, -0.7 * r), (-r, -0.7 * r)),
        "cross": ((-r, -r / 2), (-r, r / 2), (r, r / 2), (r, -r / 2)),
    }[form]
    return f'<path class="dot" d="M{"L".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)}Z"/>'


def legend(report: RunReport) -> list[tuple[str, str]]:
    """(small SVG, text) of every colour and mark in the plots, and what the limits are that lie outside."""

    def sample(form: str, colour: str) -> str:
        return f'<svg class="key {colour}" viewBox="0 0 16 16">{mark_svg(form, 8, 8, 5)}</svg>'

    points = plot_points(report)
    if not points or report.metric is None:
        return []
    frame = plot_frame(points, report.metric, limits_of(report), axis="latency", deep=report.search is None)
    occurring, marks = {p.colour for p in points}, {p.form for p in points}
    keys = [(sample("circle", f"s{i % 6}"), f) for i, f in enumerate(plot_families(report)) if i in occurring]
    if len(marks) > 1:
        keys += [(sample(FORMS[min(i, len(FORMS) - 1)], "plain"), n) for i, n in enumerate(plot_forms(report))]
    if any(p.fails for p in points):
        keys.append((sample("circle", "plain hollow"), "hollow: a gate would refuse it"))
    below = sum(map(frame.below, points))
    if below:
        keys.append((sample("downwards", "plain"), f"{below} worse than the plot shows"))
    if frame.least or frame.most:
        keys.append(('<svg class="key" viewBox="0 0 16 16"><path class="limit" d="M0,8H16"/></svg>', "limit"))
    if frame.most:
        tick = '<svg class="key plain" viewBox="0 0 16 16"><path class="tail" d="M0,8H14M14,3V13"/></svg>'
        keys.append((tick, "tick: p95 of the marked ones"))
    return [*keys, *(("", f"not shown: {text}") for text in frame.beyond)]


def _axes(frame: PlotFrame, x: Place, y: Place, titles: tuple[str, str]) -> list[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for tick in frame.across.ticks:
        parts.append(f'<path class="grid" d="M{x(tick):.1f},{_TOP}V{bottom}"/>')
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 20}">{tick_text(tick)}</text>')
    for tick in frame.up.ticks:
        parts.append(f'<path class="grid" d="M{_LEFT},{y(tick):.1f}H{right}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 10}" y="{y(tick) + 4:.1f}">{tick_text(tick)}</text>')
    middle = (_TOP + bottom) / 2
    parts.append(f'<text class="title" x="{(_LEFT + right) / 2}" y="{HEIGHT - 12}">{escape(titles[0])}</text>')
    parts.append(f'<text class="title" transform="translate(18 {middle}) rotate(-90)">{escape(titles[1])}</text>')
    return parts
