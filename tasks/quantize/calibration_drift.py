"""Calibration rows that are unlike the training rows: ranges taken from them would not hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.running.errors import CalibrationError

Array = NDArray[Any]

_ROWS = 4096
_FEATURES = 64
_CHANNELS = 16
_DISTANCE = 0.15
_SURPRISE = 2.23
"""Of the Kolmogorov-Smirnov statistic: reached by chance once in ten thousand times (times sqrt(1/n + 1/m))."""
_SPREADS = 100.0
_SHIFTS = 10.0


def compare_rows(train: Mapping[str, Array], calibration: Mapping[str, Array]) -> list[str]:
    """Findings about the columns that both have: what differs, in words; [] where they look alike.

    Compared are each value of a flat column (the first 64 features), and of larger ones the mean and spread of each
    row and the mean of each channel: by the Kolmogorov-Smirnov distance, beyond what the sample sizes explain.

    Args:
        train: columns [N, ...] by name; text is left out.
        calibration: likewise.

    Raises:
        CalibrationError: a column is of quite another scale, as if it had been preprocessed differently.
    """
    findings = []
    for name in sorted(train.keys() & calibration.keys()):
        ours, theirs = _sample(calibration[name]), _sample(train[name])
        if ours is None or theirs is None or ours.shape[1:] != theirs.shape[1:]:
            continue
        _refuse_other_scale(name, theirs.reshape(-1), ours.reshape(-1))
        for (what, values), (_, reference) in zip(_statistics(ours), _statistics(theirs), strict=True):
            distance = ks_distance(values, reference)
            if distance > max(_DISTANCE, _SURPRISE * np.sqrt(1 / len(values) + 1 / len(reference))):
                shift = standardized_difference(values, reference)
                findings.append(
                    f"calibration rows are unlike the training rows in {name!r}, {what}: means differ by {shift:.2g} "
                    f"standard deviations, Kolmogorov-Smirnov distance {distance:.2f}"
                )
    return findings


def ks_distance(left: Array, right: Array) -> float:
    """Largest difference of the two empirical distributions, 0 to 1; NaN is left out."""
    left, right = np.sort(left[np.isfinite(left)]), np.sort(right[np.isfinite(right)])
    if not len(left) or not len(right):
        return 0.0
    points = np.concatenate([left, right])
    shares = [np.searchsorted(v, points, side="right") / len(v) for v in (left, right)]
    return float(np.abs(shares[0] - shares[1]).max())


def standardized_difference(values: Array, reference: Array) -> float:
    """|difference of the means| in standard deviations of the reference."""
    values, reference = values[np.isfinite(values)], reference[np.isfinite(reference)]
    if not len(values) or not len(reference):
        return 0.0
    return abs(float(values.mean()) - float(reference.mean())) / (float(reference.std()) or 1.0)


def _refuse_other_scale(name: str, train: Array, calibration: Array) -> None:
    train, calibration = train[np.isfinite(train)], calibration[np.isfinite(calibration)]
    if not len(train) or not len(calibration) or float(train.std()) == 0.0:
        return
    distance, shift = ks_distance(calibration, train), standardized_difference(calibration, train)
    spread = float(calibration.std()) / float(train.std())
    odd_spread = not 1 / _SPREADS <= spread <= _SPREADS
    if distance > 0.5 and (odd_spread or shift > _SHIFTS):
        raise CalibrationError(
            f"calibration rows of {name!r} are of another scale than the training rows: mean {calibration.mean():.4g} "
            f"and standard deviation {calibration.std():.4g} against {train.mean():.4g} and {train.std():.4g}; "
            "ranges taken from them would not hold: preprocess both splits alike",
            column=name,
        )


def _sample(column: Array) -> Array | None:
    if not (np.issubdtype(column.dtype, np.number) or column.dtype == np.bool_) or not len(column):
        return None
    step = -(-len(column) // _ROWS)
    return column[::step].astype(np.float64)


def _statistics(column: Array) -> Iterator[tuple[str, Array]]:
    if column.ndim == 1:
        yield "value", column
    elif column.ndim == 2:
        for number in range(min(column.shape[1], _FEATURES)):
            yield f"feature {number}", column[:, number]
    else:
        flat = column.reshape(len(column), -1)
        yield "mean of a row", flat.mean(axis=1)
        yield "spread of a row", flat.std(axis=1)
        if 1 < column.shape[1] <= _CHANNELS:
            channels = column.reshape(len(column), column.shape[1], -1).mean(axis=2)
            for number in range(column.shape[1]):
                yield f"mean of channel {number}", channels[:, number]
