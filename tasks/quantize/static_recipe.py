"""Static int8 with everything that is decided once per model: the calibration method and the shifts of the biases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto

from tasks.quantize.agreement import agree, top_answers
from tasks.quantize.bias_correction import bias_shifts, shift_biases
from tasks.quantize.calibration import Feeds, RowReader
from tasks.quantize.calibration_choice import choose_method
from tasks.quantize.int8_static import Activations, quantize_statically

STATIC = frozenset({"static", "symmetric"})
"""Methods with ranges from the calibration rows."""
Build = Callable[[frozenset[str]], ModelProto]
"""Makes the quantized model with these nodes left in fp32."""


def static_recipe(
    prepared: ModelProto,
    feeds: Feeds,
    wanted: NDArray[Any],
    folder: Path,
    *,
    method: str,
    percentile: float,
    per_channel: bool,
    reduce_range: bool,
    activations: Activations,
    correct_biases: bool,
) -> tuple[Build, dict[str, Any]]:
    """How to build the model, calibrated once however often it is built.

    Shifts that do not bring the answers to the calibration rows nearer to fp32 are dropped.

    Args:
        wanted: the fp32 model's answers to ``feeds``.
        method: minmax, percentile, entropy or auto.
        correct_biases: see :mod:`tasks.quantize.bias_correction`; the graph's layers should have biases.

    Returns:
        The builder, and what was decided: ``calibration_method``, ``calibration_errors``, ``bias_correction``.
    """

    def quantize(method: str, excluded: frozenset[str] = frozenset()) -> ModelProto:
        return quantize_statically(
            prepared,
            RowReader(feeds),
            folder,
            method=method,
            percentile=percentile,
            per_channel=per_channel,
            reduce_range=reduce_range,
            activations=activations,
            excluded=excluded,
            ranges=folder / f"ranges-{method}.json",
        )

    notes: dict[str, Any] = {"calibration_method": method}
    if method == "auto":
        method, errors = choose_method(quantize, wanted, feeds)
        notes = {"calibration_method": method, "calibration_errors": errors}
    if not correct_biases:
        return partial(quantize, method), notes

    plain = quantize(method)
    correction = bias_shifts(prepared, plain, feeds)
    before = agree(wanted, top_answers(plain.SerializeToString(), feeds)).error
    after = agree(wanted, top_answers(shift_biases(plain, correction.shifts).SerializeToString(), feeds)).error
    shifts = correction.shifts if after < before else {}
    notes["bias_correction"] = {
        "layers": len(shifts),
        "skipped": list(correction.skipped),
        "error_before": before,
        "error_after": after,
    }
    return (lambda excluded: shift_biases(quantize(method, excluded), shifts)), notes
