"""Where the labels of a scatter plot go, so that none lies on a point, an error bar or another label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


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


def place_labels(spots: Sequence[Spot], obstacles: Sequence[Box], canvas: Box) -> list[Label]:
    """Place a label for each spot, greedily, the crowded ones last; deterministic.

    Args:
        obstacles: what no label may cover besides points and other labels (error bars, lines).
        canvas: labels stay inside.
    """
    points = [Box(s.x - s.radius, s.y - s.radius, s.x + s.radius, s.y + s.radius) for s in spots]
    placed: dict[int, Label] = {}
    crowd = [sum(math.hypot(a.x - b.x, a.y - b.y) < 90 for b in spots) for a in spots]
    for index in sorted(range(len(spots)), key=lambda i: (crowd[i], i)):
        taken = [*points, *obstacles, *(label.box for label in placed.values())]
        placed[index] = _place(spots[index], taken, canvas)
    return [placed[i] for i in range(len(spots))]


def _place(spot: Spot, taken: Sequence[Box], canvas: Box) -> Label:
    best: tuple[float, Label] | None = None
    for distance in _DISTANCES:
        for angle in _DIRECTIONS:
            box = _beside(spot, angle, distance)
            outside = (
                box.right > canvas.right or box.left < canvas.left or box.low < canvas.low or box.high > canvas.high
            )
            cost = sum(box.overlap(other) for other in taken) + (1e6 if outside else 0.0)
            if best is None or cost < best[0]:
                best = cost, Label(box, _leader(spot, box) if distance >= _NEAR else None)
            if cost == 0.0:
                return best[1]
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
