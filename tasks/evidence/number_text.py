"""Numbers as people read them; sizes: :mod:`model_registry.sizes`."""

from __future__ import annotations

import re

from model_registry.measurement import Interval
from model_registry.sizes import size_text, three_digits

_SHARES = ("accuracy", "f1", "auc", "precision", "recall", "jaccard")
_IOU = re.compile(r"(?<![a-z])m?iou(?![a-z])")
"""As a word: "previous" has it too."""


def is_share(metric: str) -> bool:
    """Whether the metric reads better in percent."""
    name = metric.lower()
    return any(share in name for share in _SHARES) or bool(_IOU.search(name))


def metric_text(value: float, metric: str) -> str:
    """``97.2 %`` for shares, four digits otherwise."""
    return f"{100 * value:.1f} %" if is_share(metric) else f"{value:.4g}"


def metric_range(interval: Interval, metric: str) -> str:
    """``95.0 – 98.5`` for shares, four digits otherwise."""
    low, high = interval
    return f"{100 * low:.1f} – {100 * high:.1f}" if is_share(metric) else f"{low:.4g} – {high:.4g}"


def difference_text(value: float, metric: str) -> str:
    """A difference of two metrics, with its sign: ``−0.3 points``, ``+0.012``."""
    text = f"{100 * value:+.1f} points" if is_share(metric) else f"{value:+.4g}"
    return text.replace("-", "−")


def points(value: float, metric: str) -> str:
    """A margin or bound: ``1.4 points``."""
    return (f"{three_digits(100 * value)} points" if is_share(metric) else f"{value:.4g}").replace("-", "−")


def bits_text(bits: float) -> str:
    """``0.812 bits per byte``."""
    return f"{bits:.4g} bits per byte"


def share_of_baseline(share: float) -> str:
    """A margin that is relative to the baseline: ``1 % of the baseline's metric``."""
    return f"{100 * share:.3g} % of the baseline's metric"


def count_text(count: float | None) -> str:
    """``24.6 k``, ``1.18 M``; a dash for what is unknown."""
    if count is None:
        return "–"
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{three_digits(count / scale)} {unit}"
    return f"{count:.0f}"


def ms_text(milliseconds: float) -> str:
    """Three digits: ``0.0213``, ``4.31``, ``128``."""
    return three_digits(milliseconds)


def ms_range(interval: Interval) -> str:
    return f"{three_digits(interval[0])} – {three_digits(interval[1])}"


def seconds_text(seconds: float) -> str:
    """``0.4 s``, ``2 min 05 s``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def times_text(ratio: float) -> str:
    """``3.4×``."""
    return f"{ratio:.1f}×" if ratio < 99.95 else f"{ratio:.0f}×"


def gate_number(value: float, unit: str, metric: str) -> str:
    """A gate's number in its unit: ``loss``, ``metric``, ``ms``, ``bytes``, ``ratio``, ``samples``, ``points``,
    ``tokens/s`` or ``LUTs``."""
    if value != value:
        return "missing"
    if unit == "loss":
        return points(value, metric)
    if unit == "metric":  # one digit more than elsewhere: 99.96 % is not 100 %
        return f"{100 * value:.2f} %" if is_share(metric) else f"{value:.5g}"
    return {
        "ms": f"{ms_text(value)} ms",
        "bytes": size_text(value),
        "ratio": f"{value:.2f}×",
        "samples": f"{value:.0f}",
        "points": points(value, "accuracy"),
        "tokens/s": f"{three_digits(value)} tokens/s",
        "LUTs": f"{count_text(value)} LUTs",
    }[unit]
