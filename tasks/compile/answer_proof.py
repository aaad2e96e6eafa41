"""Whether another form of a model answers as ONNX Runtime does: every output of every row, bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.evidence.number_text import count_text

Array = NDArray[Any]
TOLERANCE = 1e-5
"""Of floats, relative to the largest magnitude of the output: no two backends add in one order."""


def prove(
    run: Callable[..., tuple[Array, ...]],
    inputs: Sequence[Array],
    wanted: Sequence[Array],
    *,
    batch: int,
    tolerance: float = 0.0,
) -> dict[str, Any]:
    """Ask about every row, and compare.

    Args:
        run: takes the inputs of a batch in order, answers all outputs.
        inputs: each [rows, ...].
        wanted: what ONNX Runtime answers, each output [rows, ...].
        batch: rows that are asked about together, as ONNX Runtime was.
        tolerance: the largest difference allowed, relative to the largest magnitude of the output; 0: the same bits.

    Returns:
        Fields of a TargetForm: ``state``, ``reason``, ``rows``, ``values``, ``differing``, ``largest_difference``,
        ``tolerance``.
    """
    rows, differing, largest = len(inputs[0]), 0, 0.0
    scales = [float(np.abs(output).max(initial=0.0)) or 1.0 for output in wanted]
    for start in range(0, rows, batch):
        part = slice(start, start + batch)
        found = run(*(values[part] for values in inputs))
        for answer, truth, scale in zip(found, (output[part] for output in wanted), scales, strict=True):
            other = different(answer, truth)
            differing += int(other.sum())
            if other.any():
                gap = np.abs(answer[other].astype(np.float64) - truth[other].astype(np.float64)) / scale
                largest = max(largest, float(np.where(np.isnan(gap), np.inf, gap).max()))
    values = sum(output.size for output in wanted)
    found_text = f"{count_text(differing)} of {count_text(values)} values of {count_text(rows)} test rows differ"
    if differing and tolerance:
        found_text += f", by {largest:.1e} of the largest at most; {tolerance:g} is allowed"
    return {
        "state": "proven" if largest <= tolerance else "refused",
        "reason": found_text,
        "rows": rows,
        "values": values,
        "differing": differing,
        "largest_difference": min(largest, 1e300),
        "tolerance": tolerance,
    }


def different(one: Array, other: Array) -> NDArray[np.bool_]:
    """Where two arrays are not the same; NaN is the same as NaN, and 0 as -0."""
    both_nan = np.isnan(one) & np.isnan(other) if np.issubdtype(one.dtype, np.floating) else np.zeros(one.shape, bool)
    unequal: NDArray[np.bool_] = (one != other) & ~both_nan
    return unequal
