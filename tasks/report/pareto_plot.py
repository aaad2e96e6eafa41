"""The plot of a report: metric against latency, and in a search against file size too, with error bars and limits.

matplotlib draws it once, without a display or global state. It is saved as pareto.png, and as SVG for the page, whose
style sheet then gives the colours and whose text can be selected.
"""

from __future__ import annotations

import io
import re
from typing import Any
from xml.etree import ElementTree

from tasks.report.budget_limits import limits_of
from tasks.report.label_layout import Box, Spot, place_labels, staircase
from tasks.report.plot_frame import PlotFrame, plot_frame, tick_text
from tasks.report.plot_points import FORMS, Axis, PlotPoint, labelled, plot_families, plot_forms, plot_points
from tasks.report.run_report import RunReport

_FAMILIES = ("#64748b", "#2f6fdb", "#b4551d", "#0b8a7d", "#8a4fc7", "#a8327a")
_INK, _SOFT, _LINE, _LIMIT, _CARD = "#1c2024", "#5c6670", "#e3e5e8", "#b3261e", "#ffffff"
_VARIABLES = {
    **{colour: f"--s{number}" for number, colour in enumerate(_FAMILIES)},
    _INK: "--ink",
    _SOFT: "--soft",
    _LINE: "--line",
    _LIMIT: "--bad",
    _CARD: "--card",
}
"""The page's names of the colours; it has other values for them in the dark."""
_DPI = 160
_MARKS = {"circle": "o", "diamond": "D", "triangle": "^", "cross": "P"}
_DASHES: Any = (0, (5, 4))
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"


def pareto_png(report: RunReport) -> bytes:
    """The plot as PNG, 1600 x 960 pixels; a line of text where nothing was measured. Equal reports, equal bytes.

    A search has a second plot below, metric against file size, 1600 x 1920 pixels together.
    """
    buffer = io.BytesIO()
    _figure(report, halo=True).savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def pareto_svg(report: RunReport) -> str:
    """The same as an SVG element for the page; empty where nothing was measured. Equal reports, equal text.

    Each variant's mark is a group of class ``point`` with a ``title``, which browsers show when pointed at.
    """
    import matplotlib

    points = plot_points(report)
    if not points or report.metric is None:
        return ""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "winnow"}):
        _figure(report, halo=False).savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    root = ElementTree.fromstring(buffer.getvalue())
    _inline(root)
    drawing = root.find("g")
    assert drawing is not None
    for group in drawing.iter("g"):
        kind, _, number = group.attrib.pop("id", "").partition("-")
        if kind == "point":
            title = ElementTree.Element("title")
            title.text = points[int(number)].tooltip
            group.insert(0, title)
        if kind in ("point", "label"):
            group.set("class", kind)
    svg = ElementTree.Element("svg", {"class": "plot", "viewBox": root.attrib["viewBox"], "role": "img"})
    svg.set("aria-label", f"{report.metric.name} of every variant against its latency" + " and size" * _both(report))
    svg.append(drawing)
    return ElementTree.tostring(svg, encoding="unicode")


def outside(report: RunReport) -> tuple[str, ...]:
    """The limits that lie too far outside the plots to be drawn, in words."""
    points = plot_points(report)
    if not points or report.metric is None:
        return ()
    return tuple(dict.fromkeys(text for axis in _axes_of(report) for text in _frame(report, points, axis).beyond))


def _both(report: RunReport) -> bool:
    return report.search is not None


def _axes_of(report: RunReport) -> tuple[Axis, ...]:
    return ("latency", "size") if _both(report) else ("latency",)


def _frame(report: RunReport, points: list[PlotPoint], axis: Axis) -> PlotFrame:
    assert report.metric is not None
    return plot_frame(points, report.metric, limits_of(report), axis=axis, deep=not _both(report))


def _figure(report: RunReport, *, halo: bool) -> Any:
    """The drawing. ``halo``: a white edge around the labels; in the page the style sheet gives it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    points = plot_points(report)
    measured = bool(points) and report.metric is not None
    shown = _axes_of(report) if measured else ()
    layout = ConstrainedLayoutEngine(hspace=0.05)
    figure = Figure(figsize=(10, 6 * max(1, len(shown))), dpi=_DPI, facecolor="white", layout=layout)
    canvas: Any = FigureCanvasAgg(figure)
    if not measured:
        axes = figure.add_subplot()
        axes.set_axis_off()
        axes.text(0.5, 0.5, "No variant was measured.", ha="center", va="center", color=_SOFT, fontsize=14)
        return figure
    drawn = []
    for number, axis in enumerate(shown):
        axes, frame = figure.add_subplot(len(shown), 1, number + 1), _frame(report, points, axis)
        drawn.append((axes, frame, _draw(report, points, frame, axes)))
    _legend(report, points, [frame for _, frame, _ in drawn], drawn[-1][0])
    canvas.draw()  # the layout must stand before labels can be placed in pixels
    figure.set_layout_engine("none")
    for axes, frame, line in drawn:
        _label(points, frame, axes, canvas, line, halo=halo)
    return figure


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
        linestyle=_DASHES,
        zorder=1,
    )
    limit: dict[str, Any] = {"color": _LIMIT, "linewidth": 1, "alpha": 0.8, "zorder": 1.5}
    text: dict[str, Any] = {"color": _LIMIT, "fontsize": 8, "va": "top", "zorder": 5, "textcoords": "offset points"}
    if frame.least:
        axes.plot([frame.across.low, frame.across.high], [frame.least.value] * 2, **limit)
        place = axes.get_yaxis_transform()
        axes.annotate(frame.least.text, (1, frame.least.value), (-2, -2), xycoords=place, ha="right", **text)
    if frame.most:
        axes.plot([frame.most.value] * 2, [frame.up.low, frame.up.high], **limit)
        left = axes.transLimits.transform(axes.transScale.transform((frame.most.value, frame.up.low)))[0] < 0.8
        place, shift = axes.get_xaxis_transform(), (4, -1) if left else (-4, -1)
        side = "left" if left else "right"
        axes.annotate(frame.most.text, (frame.most.value, 1), shift, xycoords=place, ha=side, **text)
    for number, point in sorted(enumerate(points), key=lambda p: (p[1].marked, p[1].strong)):
        _draw_point(number, point, frame, axes)
    return line


def _set_up(report: RunReport, frame: PlotFrame, axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    assert report.metric is not None
    across, up = frame.across, frame.up
    if across.log:
        axes.set_xscale("log")
    axes.set_xlim(across.low, across.high)
    axes.set_ylim(*((up.low, up.high) if frame.higher else (up.high, up.low)))  # better is always up
    few = across.high / across.low < 1e3 if across.log else False
    rounds = MaxNLocator(7, steps=[1, 2, 2.5, 5, 10])
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)) if across.log else rounds)
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    for side in (axes.xaxis, axes.yaxis):
        side.set_minor_locator(NullLocator())
        side.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
    axes.grid(color=_LINE, linewidth=0.8, clip_on=False)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT, length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    axes.patch.set_visible(False)
    # A name is no formula: parse_math would let a $ in it fail the report.
    words: dict[str, Any] = {"color": _SOFT, "fontsize": 9, "parse_math": False}
    below, beside = frame.titles(report)
    axes.set_xlabel(below, **words)
    axes.set_ylabel(beside, **words)
    what = "latency" if frame.axis == "latency" else "file size"
    title = f"{report.model}: {report.metric.name} against {what}"
    axes.set_title(title, loc="left", color=_INK, fontsize=12, fontweight="bold", parse_math=False)


def _draw_point(number: int, point: PlotPoint, frame: PlotFrame, axes: Any) -> None:
    from matplotlib.transforms import offset_copy

    colour = _FAMILIES[point.colour % len(_FAMILIES)]
    across, up, below = point.across(frame.axis), _up(point, frame), frame.below(point)
    bars: dict[str, Any] = {"color": colour, "alpha": 0.5 if point.strong else 0.25, "linewidth": 1.2, "zorder": 2}
    axes.plot(point.across_interval(frame.axis), [up, up], **bars)
    if not below:
        axes.plot([across, across], _turned(point, frame), **bars)
    if frame.axis == "latency" and frame.most and point.marked:
        axes.plot([across, point.p95], [up, up], color=colour, linewidth=0.8, linestyle=":", zorder=2)
        axes.scatter(point.p95, up, marker="|", s=60, color=colour, linewidths=1.2, zorder=2, clip_on=False)
    axes.scatter(
        across,
        up,
        transform=offset_copy(axes.transData, axes.figure, y=3.5 * below, units="points"),
        s=(1.5 * (4.0 if below else point.radius)) ** 2,
        marker="v" if below else _MARKS[FORMS[point.form]],
        facecolors=_CARD if point.fails else colour,
        alpha=1.0 if point.strong else 0.4,
        edgecolors=colour if point.fails else _CARD,
        linewidths=1.5 if point.fails else 1.0,
        clip_on=False,
        zorder=3 + point.strong,
        gid=f"point-{number}",
    )
    if point.marked:
        plain = point.chosen or not point.baseline
        axes.scatter(
            across,
            up,
            s=(1.5 * point.radius + 9) ** 2,
            facecolors="none",
            edgecolors=_INK if plain else _SOFT,
            linewidths=1.8,
            linestyles="-" if plain else (0, (2, 2)),
            clip_on=False,
            zorder=5,
        )


def _legend(report: RunReport, points: list[PlotPoint], frames: list[PlotFrame], axes: Any) -> None:
    """What colours, marks and lines mean."""
    from matplotlib.lines import Line2D

    def key(label: str, marker: str = "", colour: str = _SOFT, **look: Any) -> None:
        handles.append(Line2D([], [], marker=marker, linestyle=look.pop("line", ""), color=colour, label=label, **look))

    handles: list[Any] = []
    occurring, forms = {p.colour for p in points}, plot_forms(report)
    for i, family in enumerate(plot_families(report)):
        if i in occurring:
            key(family, "o", _FAMILIES[i % len(_FAMILIES)])
    if len(forms) > 1:
        for i, form in enumerate(forms):
            key(form, _MARKS[FORMS[min(i, len(FORMS) - 1)]])
    if any(p.fails for p in points):
        key("a gate would refuse it", "o", markerfacecolor=_CARD)
    if worse := sum(map(frames[0].below, points)):
        key(f"{worse} worse than the plot shows", "v")
    if any(frame.least or frame.most for frame in frames):
        key("limit", colour=_LIMIT, line="-", linewidth=1)
    if frames[0].most:
        key("p95 of the marked ones", "|", markersize=8)
    legend = axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, -0.11),
        ncols=min(len(handles), 6),
        frameon=False,
        labelcolor=_SOFT,
        fontsize=8.5,
        handletextpad=0.2,
        columnspacing=1.4,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _label(
    points: list[PlotPoint], frame: PlotFrame, axes: Any, canvas: Any, line: list[PlotPoint], *, halo: bool
) -> None:
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
            ha="center",
            fontsize=9,
            color=_INK if point.strong else _SOFT,
            fontweight="bold" if point.marked else "normal",
            zorder=6,
            gid="label",
            path_effects=[withStroke(linewidth=3, foreground="white")] if halo else None,
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
        text.set_position(to_data(((label.box.left + label.box.right) / 2, label.box.low + 4)))
        if label.leader:
            (x1, y1), (x2, y2) = to_data([label.leader[:2], label.leader[2:]])
            axes.plot([x1, x2], [y1, y2], color=_SOFT, linewidth=0.8, alpha=0.7, zorder=2)


def _inline(root: ElementTree.Element) -> None:
    """Make matplotlib's SVG part of an HTML page: no namespaces, links, clipping, fonts and colours of its own."""
    marks = {e.attrib["id"]: e for e in root.iter() if e.tag == f"{_SVG}path" and "id" in e.attrib}
    for element in root.iter():
        for child in list(element):
            if child.tag in (f"{_SVG}defs", f"{_SVG}metadata") or (child.tag == f"{_SVG}g" and not len(child)):
                element.remove(child)
            child.tail = None
        element.text = (element.text or "").strip("\n ") or None
        element.attrib.pop("clip-path", None)
        if element.tag == f"{_SVG}use":  # a mark: drawn where it is
            mark = marks[element.attrib.pop(_LINK).removeprefix("#")]
            place = f"translate({element.attrib.pop('x', '0')} {element.attrib.pop('y', '0')})"
            element.attrib |= {"d": mark.attrib["d"], "transform": place}
            element.attrib["style"] = f"{mark.attrib.get('style', '')}; {element.attrib.get('style', '')}"
            element.tag = "path"
        for name in {"d", "x", "y", "transform"} & element.attrib.keys():
            element.set(name, re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}", element.attrib[name]))
        if style := element.attrib.get("style"):
            style = re.sub(r"#[0-9a-f]{6}", lambda found: f"var({_VARIABLES[found[0]]})", style)
            element.set("style", re.sub(r"(font-family: [^;]*|(?<=px) '[^;]*)", "", style).strip("; "))
        element.tag = element.tag.removeprefix(_SVG)


def _up(point: PlotPoint, frame: PlotFrame) -> float:
    """The metric in the axis's unit; at the edge where it is worse than the plot shows."""
    return frame.up.inside(frame.factor * point.metric)


def _turned(point: PlotPoint, frame: PlotFrame) -> tuple[float, float]:
    low, high = point.metric_interval
    return frame.up.inside(frame.factor * low), frame.up.inside(frame.factor * high)
