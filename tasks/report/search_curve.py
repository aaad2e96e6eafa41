"""The best answer of a search over its time, as a step line: what more minutes were worth."""

from __future__ import annotations

import math
from html import escape

from tasks.evidence.number_text import seconds_text
from tasks.evidence.search_summary import BestSoFar
from tasks.report.run_report import RunReport

_WIDTH, _HEIGHT = 640, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 16, 34
_MARKS = (1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000)


def curve_svg(report: RunReport) -> str:
    """An SVG of the best form so far: how many times faster (with objective size smaller, with both and of a front
    the geometric mean) than the baseline it is.

    Along the search's computing time; the ratios are on a logarithmic axis. Empty where nothing was proven.
    """
    search = report.search
    points = [(best, ratio) for best in (search.curve if search else ()) for ratio in (_ratio(best, report),) if ratio]
    if search is None or not points:
        return ""
    end = max(search.seconds, points[-1][0].seconds, 1.0)
    top = max(1.5, *(ratio for _, ratio in points)) * 1.15
    low = min(1.0, *(ratio for _, ratio in points))

    def x(seconds: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * seconds / end, 1)

    def y(ratio: float) -> float:
        share = math.log(ratio / low) / math.log(top / low)
        return round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share, 1)

    mean = "faster and smaller (mean)"
    what = {"size": "smaller", "both": mean, "front": mean}.get(search.objective, "faster")
    marks = [mark for mark in _MARKS if low <= mark <= top]
    marks = marks[:: max(1, math.ceil(len(marks) / 5))]
    parts = [
        f'<svg class="curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="best so far, times {what}">',
        f'<rect class="planned" x="{x(0)}" y="{_TOP}" width="{round(x(min(search.planning_seconds, end)) - x(0), 1)}" '
        f'height="{_HEIGHT - _TOP - _BOTTOM}"><title>before the first training</title></rect>',
        *(
            f'<path class="grid" d="M{_LEFT},{y(mark)}H{_WIDTH - _RIGHT}"/>'
            f'<text x="{_LEFT - 6}" y="{y(mark) + 4}" text-anchor="end">{mark:g}×</text>'
            for mark in marks
        ),
    ]
    path = f"M{x(points[0][0].seconds)},{y(points[0][1])}"
    for best, ratio in points[1:]:
        path += f"H{x(best.seconds)}V{y(ratio)}"
    parts.append(f'<path class="best" d="{path}H{x(end)}"/>')
    for best, ratio in points:
        title = escape(f"{best.name}: {ratio:.1f} times {what} after {seconds_text(best.seconds)}")
        parts.append(f'<circle cx="{x(best.seconds)}" cy="{y(ratio)}" r="4"><title>{title}</title></circle>')
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        anchor = "start" if share == 0 else "end" if share == 1 else "middle"
        text = escape(seconds_text(share * end) if share else "0")
        parts.append(f'<text x="{x(share * end)}" y="{_HEIGHT - 12}" text-anchor="{anchor}">{text}</text>')
    return "".join([*parts, "</svg>"])


def _ratio(best: BestSoFar, report: RunReport) -> float | None:
    objective = report.search.objective if report.search is not None else ""
    if objective not in ("size", "both", "front"):
        return best.speedup
    baseline = report.row(report.baseline) if report.baseline else None
    smaller = baseline.bytes / best.bytes if baseline and best.bytes else None
    if objective == "size" or smaller is None:
        return smaller
    return math.sqrt(smaller * best.speedup) if best.speedup else None
