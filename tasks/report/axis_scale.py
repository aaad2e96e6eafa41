"""An axis: a linear or logarithmic scale with round ticks."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class AxisScale:
    """Maps values to 0..1 between ``low`` and ``high``; ``ticks`` are round values inside."""

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high end; values outside are clamped."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)


def fit_scale(values: list[float], *, log: bool = False) -> AxisScale:
    """A scale with some air around the values.

    Args:
        log: use a logarithm where the values are positive and span more than a factor of four.
    """
    low, high = min(values), max(values)
    if log and low > 0 and high / low > 4:
        air = (high / low) ** 0.08
        low, high = low / air, high * air
        return AxisScale(low, high, True, _log_ticks(low, high))
    air = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
    low, high = low - air, high + air
    return AxisScale(low, high, False, _linear_ticks(low, high))


def tick_text(value: float) -> str:
    """A tick without trailing zeros or exponents."""
    return f"{value:.10f}".rstrip("0").rstrip(".") if abs(value) < 1e6 else f"{value:g}"


def _linear_ticks(low: float, high: float) -> tuple[float, ...]:
    step = 10 ** math.floor(math.log10((high - low) / 4))
    for factor in (1, 2, 2.5, 5, 10):
        if (high - low) / (step * factor) <= 6:
            step *= factor
            break
    first = math.ceil(low / step - 1e-9)
    return tuple(round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1))


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    span = math.log10(high / low)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1, max(1, round(span / 6)))
    steps = (1, 2, 5) if span < 3 else (1,)
    return tuple(round(s * 10.0**d, 12) for d in decades for s in steps if low <= s * 10.0**d <= high)
