"""Which way of finding the ranges of activations fits a model best: tried, on the calibration rows themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto

from tasks.quantize.agreement import agree, top_answers
from tasks.quantize.calibration import Feeds

METHODS = ("minmax", "percentile", "entropy")
_GAIN = 0.95


def choose_method(
    quantize: Callable[[str], ModelProto], wanted: NDArray[Any], feeds: Feeds
) -> tuple[str, dict[str, float]]:
    """minmax, unless another one is nearer to fp32 by 5 % of the error and agrees on as many arg max.

    The rows judge what was made from them, so a small lead means nothing.

    Args:
        quantize: makes the int8 model with a method.
        wanted: the fp32 model's answers to ``feeds``.

    Returns:
        The method, and the relative error of each.
    """
    found = {method: agree(wanted, top_answers(quantize(method).SerializeToString(), feeds)) for method in METHODS}
    best = METHODS[0]
    for method in METHODS[1:]:
        agrees = (found[method].agreement or 0.0) >= (found[best].agreement or 0.0)
        if agrees and found[method].error < _GAIN * found[best].error:
            best = method
    return best, {method: result.error for method, result in found.items()}
