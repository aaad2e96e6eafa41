"""Where the labels of a scatter plot go, so that none lies on a point, an error bar or another label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Box:
    """An upright rectangle in pixels; which way y points does not matter."""

    left: float
    low: float
    right: float
    high: float

    def overlap(self, other: Box) -> float:
        """Area of the intersection."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.high, other.high) - max(self.low, other.low)
        return max(0.0, width) * max(0.0, height)


@dataclass(frozen=True)
class Spot:
    """A point to be labelled: its centre, radius and the size of its label."""

    x: float
    y: float
    radius: float
    width: float
    height: float


@dataclass(frozen=True)
class Label:
    """``box`` of the text; ``leader`` is where a line from the label should meet the point, if it is far from it."""

    box: Box
    leader: tuple[float, float, float, float] | None


# Right, left, above and below first: labels beside their point read best.
_DIRECTIONS = [math.radians(a) for a in (0, 180, 90, 270, 35, 325, 145, 215, 60, 300, 120, 240)]
_DISTANCES = (4.0, 12.0, 24.0, 38.0, 54.0, 74.0, 98.0, 126.0)
_NEAR = 14.0


def place_labels(
    spots: Sequence[Spot], obstacles: Sequence[Box], canvas: Box, *, unit: float = 1.0, others: Sequence[Box] = ()
) -> list[Label]:
    """Place a label for each spot, greedily, the crowded ones last; deterministic.

    Args:
        obstacles: thin lines that labels had better not cross: error bars, the frontier.
        canvas: labels stay inside.
        unit: pixels per point of the screen, for distances.
        others: points without a label and other text, which no label may cover.
    """
    points = [*others, *(Box(s.x - s.radius, s.y - s.radius, s.x + s.radius, s.y + s.radius) for s in spots)]
    placed: dict[int, Label] = {}
    crowd = [sum(math.hypot(a.x - b.x, a.y - b.y) < 90 * unit for b in spots) for a in spots]
    for index in sorted(range(len(spots)), key=lambda i: (crowd[i], i)):
        taken = [*points, *(label.box for label in placed.values())]
        placed[index] = _place(spots[index], taken, obstacles, canvas, unit)
    return [placed[i] for i in range(len(spots))]


def staircase(corners: Sequence[tuple[float, float]], thickness: float = 2.0) -> list[Box]:
    """Boxes along a line that goes across, then up or down, from corner to corner."""
    boxes, half = [], thickness / 2
    for (x1, y1), (x2, y2) in pairwise(corners):
        boxes.append(Box(min(x1, x2), y1 - half, max(x1, x2), y1 + half))
        boxes.append(Box(x2 - half, min(y1, y2), x2 + half, max(y1, y2)))
    return boxes


def _place(spot: Spot, taken: Sequence[Box], lines: Sequence[Box], canvas: Box, unit: float) -> Label:
    """The cheapest place: never on a point or label if that can be, rather near than clear of every line."""
    best: tuple[float, Label] | None = None
    for distance in _DISTANCES:
        for angle in _DIRECTIONS:
            box = _beside(spot, angle, distance * unit)
            inside = canvas.left <= box.left and box.right <= canvas.right and canvas.low <= box.low
            cost = (
                0.4 * distance
                + 12.0 * sum(box.overlap(line) > 0 for line in lines)
                + sum(1e3 + box.overlap(other) for other in taken if box.overlap(other) > 0)
                + (0.0 if inside and box.high <= canvas.high else 1e6)
            )
            if best is None or cost < best[0]:
                best = cost, Label(box, _leader(spot, box) if distance >= _NEAR else None)
    assert best is not None
    return best[1]


def _beside(spot: Spot, angle: float, distance: float) -> Box:
    """The label's box, its nearest edge at the distance from the point's rim in this direction."""
    reach = spot.radius + distance
    x, y = spot.x + reach * math.cos(angle), spot.y + reach * math.sin(angle)
    left = x + (math.cos(angle) - 1) / 2 * spot.width
    low = y + (math.sin(angle) - 1) / 2 * spot.height
    return Box(left, low, left + spot.width, low + spot.height)


def _leader(spot: Spot, box: Box) -> tuple[float, float, float, float]:
    """From the rim of the point to the nearest point of the label."""
    x = min(max(spot.x, box.left), box.right)
    y = min(max(spot.y, box.low), box.high)
    length = math.hypot(x - spot.x, y - spot.y) or 1.0
    return spot.x + (x - spot.x) * spot.radius / length, spot.y + (y - spot.y) * spot.radius / length, x, y
