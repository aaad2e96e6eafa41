"""pareto.png: metric against latency with error bars, drawn by matplotlib without a display or global state."""

from __future__ import annotations

import io
from typing import Any

from tasks.evidence.number_text import is_share
from tasks.report.axis_scale import tick_text
from tasks.report.budget_limits import limits_of
from tasks.report.label_layout import Box, Spot, place_labels, staircase
from tasks.report.plot_frame import PlotFrame, plot_frame
from tasks.report.plot_points import FORMS, Axis, PlotPoint, labelled, plot_families, plot_forms, plot_points
from tasks.report.run_report import RunReport

_COLOURS = ("#64748b", "#2f6fdb", "#b4551d", "#0b8a7d", "#8a4fc7", "#a8327a")
_INK, _SOFT, _LINE, _LIMIT = "#1c2024", "#5c6670", "#e3e5e8", "#b3261e"
_DPI = 160
_MARKS = {"circle": "o", "diamond": "D", "triangle": "^", "cross": "P"}


def pareto_png(report: RunReport) -> bytes:
    """The plot as PNG, 1600 x 960 pixels; a line of text where nothing was measured. Equal reports, equal bytes.

    A search has a second plot below, metric against file size, 1600 x 1920 pixels together.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = plot_points(report)
    shown: tuple[Axis, ...] = ("latency", "size") if report.search and points else ("latency",)
    figure = Figure(figsize=(10, 6 * len(shown)), dpi=_DPI, facecolor="white", layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    if points and report.metric is not None:
        limits = limits_of(report)
        drawn = []
        for number, axis in enumerate(shown):
            axes = figure.add_subplot(len(shown), 1, number + 1)
            frame = plot_frame(points, report.metric, limits, axis=axis, deep=report.search is None)
            drawn.append((axes, frame, _draw(report, points, frame, axes)))
        _legend(report, points, drawn[-1][0])
        canvas.draw()  # the layout must stand before labels can be placed in pixels
        for axes, frame, line in drawn:
            _label(points, frame, axes, canvas, line)
    else:
        axes = figure.add_subplot()
        axes.set_axis_off()
        axes.text(0.5, 0.5, "No variant was measured.", ha="center", va="center", color=_SOFT, fontsize=14)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw(report: RunReport, points: list[PlotPoint], frame: PlotFrame, axes: Any) -> list[PlotPoint]:
    """Everything but the labels and the legend; returns the frontier."""
    _set_up(report, frame, axes)
    line = frame.frontier(points)
    axes.step(
        [*(p.across(frame.axis) for p in line), frame.across.high],
        [*(_up(p, frame) for p in line), _up(line[-1], frame)],
        where="post",
        color=_SOFT,
        linewidth=1,
        linestyle=(0, (5, 4)),
        zorder=1,
    )
    limit = {"color": _LIMIT, "linewidth": 1, "alpha": 0.8, "zorder": 1.5}
    text = {"color": _LIMIT, "fontsize": 8, "zorder": 5}
    if frame.least:
        axes.axhline(frame.least.value, **limit)
        axes.text(
            0.998,
            frame.least.value,
            frame.least.text,
            ha="right",
            va="top",
            transform=axes.get_yaxis_transform(),
            **text,
        )
    if frame.most:
        axes.axvline(frame.most.value, **limit)
        right = frame.across.place(frame.most.value) > 0.8
        axes.text(
            frame.most.value,
            0.995,
            f" {frame.most.text} ",
            ha="right" if right else "left",
            va="top",
            transform=axes.get_xaxis_transform(),
            **text,
        )
    for point in sorted(points, key=lambda p: (p.marked, p.strong)):
        _draw_point(point, frame, axes)
    return line


def _set_up(report: RunReport, frame: PlotFrame, axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    assert report.metric is not None
    across, up, name = frame.across, frame.up, report.metric.name
    if across.log:
        axes.set_xscale("log")
    axes.set_xlim(across.low, across.high)
    axes.set_ylim(*((up.low, up.high) if frame.higher else (up.high, up.low)))  # better is always up
    axes.set_xticks(across.ticks, minor=False)
    axes.set_yticks(up.ticks)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
    axes.minorticks_off()
    axes.grid(color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT, length=0, labelsize=9)
    for spine in axes.spines.values():
        spine.set_visible(False)
    what = "median latency, ms" if frame.axis == "latency" else "file size, KB"
    axes.set_xlabel(f"{what}{' (log scale)' * across.log}, left is better", color=_SOFT, fontsize=10)
    axes.set_ylabel(f"{name}{' (%)' * is_share(name)}, up is better", color=_SOFT, fontsize=10)
    title = f"{report.model}: {name} against {'latency' if frame.axis == 'latency' else 'file size'}"
    # A name is no formula: parse_math would let a $ in it fail the report.
    axes.set_title(title, loc="left", color=_INK, fontsize=13, fontweight="bold", parse_math=False)


def _draw_point(point: PlotPoint, frame: PlotFrame, axes: Any) -> None:
    colour = _COLOURS[point.colour % len(_COLOURS)]
    across, up, below = point.across(frame.axis), _up(point, frame), frame.below(point)
    axes.errorbar(
        across,
        up,
        xerr=_arms(across, point.across_interval(frame.axis)),
        yerr=None if below else _arms(up, _turned(point, frame)),
        color=colour,
        alpha=0.5 if point.strong else 0.25,
        linewidth=1.2,
        zorder=2,
    )
    if frame.axis == "latency" and frame.most and point.marked:
        axes.plot([across, point.p95], [up, up], color=colour, linewidth=0.8, linestyle=":", zorder=2)
        axes.scatter(point.p95, up, marker="|", s=60, color=colour, linewidths=1.2, zorder=2)
    axes.scatter(
        across,
        up,
        s=(1.5 * (4.0 if below else point.radius)) ** 2,
        marker="v" if below else _MARKS[FORMS[point.form]],
        facecolors="white" if point.fails else colour,
        alpha=1.0 if point.strong else 0.4,
        edgecolors=colour if point.fails else "white",
        linewidths=1.5 if point.fails else 1.0,
        clip_on=not below,
        zorder=3 + point.strong,
    )
    if point.marked:
        axes.scatter(
            across,
            up,
            s=(1.5 * point.radius + 9) ** 2,
            facecolors="none",
            edgecolors=_SOFT if point.baseline and not point.chosen else _INK,
            linewidths=1.8,
            linestyles=(0, (2, 2)) if point.baseline and not point.chosen else "-",
            zorder=5,
        )


def _legend(report: RunReport, points: list[PlotPoint], axes: Any) -> None:
    from matplotlib.lines import Line2D

    def key(marker: str, label: str, colour: str = _SOFT, fill: str | None = None) -> Any:
        look: dict[str, Any] = {"markerfacecolor": fill} if fill else {}
        return Line2D([], [], marker=marker, linestyle="", color=colour, label=label, **look)

    occurring, forms = {p.colour for p in points}, plot_forms(report)
    handles = [
        key("o", family, _COLOURS[i % len(_COLOURS)])
        for i, family in enumerate(plot_families(report))
        if i in occurring
    ]
    if len(forms) > 1:
        handles += [key(_MARKS[FORMS[min(i, len(FORMS) - 1)]], form) for i, form in enumerate(forms)]
    if any(p.fails for p in points):
        handles.append(key("o", "a gate would refuse it", fill="white"))
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, -0.1),
        ncols=min(len(handles), 8),
        frameon=False,
        labelcolor=_SOFT,
        fontsize=9,
        handletextpad=0.1,
        columnspacing=1.2,
    )


def _label(points: list[PlotPoint], frame: PlotFrame, axes: Any, canvas: Any, line: list[PlotPoint]) -> None:
    from matplotlib.patheffects import withStroke

    to_pixels, to_data = axes.transData.transform, axes.transData.inverted().transform
    scale, named = _DPI / 72, labelled(points, line)
    spots, bars, texts, others = [], [], [], []
    for text in axes.texts:  # the limits'
        extent = text.get_window_extent(canvas.get_renderer())
        others.append(Box(extent.x0, extent.y0, extent.x1, extent.y1))
    for point in points:
        across, up = point.across(frame.axis), _up(point, frame)
        x, y = to_pixels((across, up))
        radius = (0.75 * point.radius + 2 + 4 * point.marked) * scale
        left, right = (to_pixels((v, up))[0] for v in point.across_interval(frame.axis))
        low, high = sorted(to_pixels((across, v))[1] for v in _turned(point, frame))
        bars += [Box(left, y - 2, right, y + 2), Box(x - 2, low, x + 2, high)]
        if point not in named:
            others.append(Box(x - radius, y - radius, x + radius, y + radius))
            continue
        text = axes.text(
            0,
            0,
            point.label,
            fontsize=9,
            color=_INK if point.strong else _SOFT,
            fontweight="bold" if point.marked else "normal",
            zorder=6,
            path_effects=[withStroke(linewidth=3, foreground="white")],
            parse_math=False,
        )
        size = text.get_window_extent(canvas.get_renderer())
        spots.append(Spot(x, y, radius, size.width + 4, size.height + 4))
        texts.append(text)
    frame_box = axes.get_window_extent(canvas.get_renderer())
    if frame.least:
        height = to_pixels((frame.across.low, frame.least.value))[1]
        bars.append(Box(frame_box.x0, height - 2, frame_box.x1, height + 2))
    if frame.most:
        place = to_pixels((frame.most.value, frame.up.low))[0]
        bars.append(Box(place - 2, frame_box.y0, place + 2, frame_box.y1))
    corners = [tuple(map(float, to_pixels((p.across(frame.axis), _up(p, frame))))) for p in line]
    bars += staircase([*((x, y) for x, y in corners), (frame_box.x1, corners[-1][1])], thickness=4.0)
    canvas_box = Box(frame_box.x0, frame_box.y0, frame_box.x1, frame_box.y1)
    places = place_labels(spots, bars, canvas_box, unit=scale, others=others)
    for text, label in zip(texts, places, strict=True):
        text.set_position(to_data((label.box.left + 2, label.box.low + 4)))
        if label.leader:
            (x1, y1), (x2, y2) = to_data([label.leader[:2], label.leader[2:]])
            axes.plot([x1, x2], [y1, y2], color=_SOFT, linewidth=0.8, alpha=0.7, zorder=2)


def _up(point: PlotPoint, frame: PlotFrame) -> float:
    """The metric in the axis's unit; at the edge where it is worse than the plot shows."""
    return min(max(frame.factor * point.metric, frame.up.low), frame.up.high)


def _turned(point: PlotPoint, frame: PlotFrame) -> tuple[float, float]:
    low, high = point.metric_interval
    return frame.factor * low, frame.factor * high


def _arms(value: float, interval: tuple[float, float]) -> list[list[float]]:
    """Lengths of an error bar's arms; an interval need not contain a median of medians exactly."""
    return [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]
