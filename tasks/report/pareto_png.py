"""pareto.png: metric against latency with error bars, drawn by matplotlib without a display or global state."""

from __future__ import annotations

import io
from typing import Any

from tasks.evidence.number_text import is_share
from tasks.report.label_layout import Box, Spot, place_labels, staircase
from tasks.report.plot_points import FORMS, PlotPoint, frontier, plot_families, plot_forms, plot_points
from tasks.report.run_report import RunReport

_COLOURS = ("#64748b", "#2f6fdb", "#b4551d", "#0b8a7d", "#8a4fc7", "#a8327a")
_INK, _SOFT, _LINE = "#1c2024", "#5c6670", "#e3e5e8"
_DPI = 160
_MARKS = {"circle": "o", "diamond": "D", "triangle": "^", "cross": "P"}


def pareto_png(report: RunReport) -> bytes:
    """The plot as PNG, 1600 x 960 pixels; a line of text where nothing was measured. Equal reports, equal bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), dpi=_DPI, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points = plot_points(report)
    if points and report.metric is not None:
        _draw(report, points, axes, canvas)
    else:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "No variant was measured.", ha="center", va="center", color=_SOFT, fontsize=14)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw(report: RunReport, points: list[PlotPoint], axes: Any, canvas: Any) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, NullFormatter

    from tasks.report.axis_scale import fit_scale, tick_text

    assert report.metric is not None
    name, higher = report.metric.name, report.metric.better == "higher"
    factor = 100.0 if is_share(name) else 1.0
    across = fit_scale([v for p in points for v in p.latency_interval], log=True)
    up = fit_scale([factor * v for p in points for v in p.metric_interval])
    if across.log:
        axes.set_xscale("log")
    axes.set_xlim(across.low, across.high)
    axes.set_ylim(*((up.low, up.high) if higher else (up.high, up.low)))  # better is always up
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
    axes.set_xlabel(f"median latency, ms{' (log scale)' * across.log}, left is better", color=_SOFT, fontsize=10)
    axes.set_ylabel(f"{name}{' (%)' * is_share(name)}, up is better", color=_SOFT, fontsize=10)
    axes.set_title(f"{report.model}: {name} against latency", loc="left", color=_INK, fontsize=13, fontweight="bold")

    line = frontier(points, higher_is_better=higher)
    axes.step(
        [*(p.latency for p in line), across.high],
        [*(factor * p.metric for p in line), factor * line[-1].metric],
        where="post",
        color=_SOFT,
        linewidth=1,
        linestyle=(0, (5, 4)),
        zorder=1,
    )
    for point in points:
        colour, strong = _COLOURS[point.colour % len(_COLOURS)], point.pareto or point.chosen or point.baseline
        axes.errorbar(
            point.latency,
            factor * point.metric,
            xerr=_arms(point.latency, point.latency_interval),
            yerr=_arms(factor * point.metric, (factor * point.metric_interval[0], factor * point.metric_interval[1])),
            color=colour,
            alpha=0.5 if strong else 0.25,
            linewidth=1.2,
            zorder=2,
        )
        axes.scatter(
            point.latency,
            factor * point.metric,
            s=(1.5 * point.radius) ** 2,
            marker=_MARKS[FORMS[point.form]],
            color=colour,
            alpha=1.0 if strong else 0.4,
            edgecolors="white",
            linewidths=1.0,
            zorder=3,
        )
        if point.chosen or point.baseline:
            axes.scatter(
                point.latency,
                factor * point.metric,
                s=(1.5 * point.radius + 9) ** 2,
                facecolors="none",
                edgecolors=_INK if point.chosen else _SOFT,
                linewidths=1.8,
                linestyles="-" if point.chosen else (0, (2, 2)),
                zorder=4,
            )
    handles = [
        Line2D([], [], marker="o", linestyle="", color=_COLOURS[i % len(_COLOURS)], label=family)
        for i, family in enumerate(plot_families(report))
    ]
    forms = plot_forms(report)
    if len(forms) > 1:
        handles += [
            Line2D([], [], marker=_MARKS[FORMS[min(i, len(FORMS) - 1)]], linestyle="", color=_SOFT, label=form)
            for i, form in enumerate(forms)
        ]
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, -0.1),
        ncols=len(handles),
        frameon=False,
        labelcolor=_SOFT,
        fontsize=9,
        handletextpad=0.1,
        columnspacing=1.2,
    )
    canvas.draw()  # the layout must stand before labels can be placed in pixels
    _label(points, factor, axes, canvas, [*((p.latency, factor * p.metric) for p in line)])


def _label(points: list[PlotPoint], factor: float, axes: Any, canvas: Any, line: list[tuple[float, float]]) -> None:
    from matplotlib.patheffects import withStroke

    to_pixels, to_data = axes.transData.transform, axes.transData.inverted().transform
    scale = _DPI / 72
    spots, bars, texts = [], [], []
    for point in points:
        text = axes.text(
            0,
            0,
            point.name + (" (chosen)" if point.chosen else " (baseline)" if point.baseline else ""),
            fontsize=9,
            color=_INK if point.pareto or point.chosen or point.baseline else _SOFT,
            fontweight="bold" if point.chosen or point.baseline else "normal",
            zorder=5,
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )
        size = text.get_window_extent(canvas.get_renderer())
        x, y = to_pixels((point.latency, factor * point.metric))
        ring = 4 if point.chosen or point.baseline else 0
        spots.append(Spot(x, y, (0.75 * point.radius + 2 + ring) * scale, size.width + 4, size.height + 4))
        texts.append(text)
        left, right = (to_pixels((v, factor * point.metric))[0] for v in point.latency_interval)
        low, high = sorted(to_pixels((point.latency, factor * v))[1] for v in point.metric_interval)
        bars += [Box(left, y - 2, right, y + 2), Box(x - 2, low, x + 2, high)]
    frame = axes.get_window_extent(canvas.get_renderer())
    corners = [tuple(map(float, to_pixels(corner))) for corner in line]
    bars += staircase([*((x, y) for x, y in corners), (frame.x1, corners[-1][1])], thickness=4.0)
    canvas_box = Box(frame.x0, frame.y0, frame.x1, frame.y1)
    for text, label in zip(texts, place_labels(spots, bars, canvas_box, unit=scale), strict=True):
        text.set_position(to_data((label.box.left + 2, label.box.low + 4)))
        if label.leader:
            (x1, y1), (x2, y2) = to_data([label.leader[:2], label.leader[2:]])
            axes.plot([x1, x2], [y1, y2], color=_SOFT, linewidth=0.8, alpha=0.7, zorder=2)


def _arms(value: float, interval: tuple[float, float]) -> list[list[float]]:
    """Lengths of an error bar's arms; an interval need not contain a median of medians exactly."""
    return [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]
