"""Ranges of activations by entropy calibration, with bins enough to choose from.

Of all ranges around 0 the one is taken whose 8-bit histogram tells least apart from the whole one (Migacz 2017, "8-bit
inference with TensorRT"). ONNX Runtime 1.31 counts into as many bins as it then quantizes to, 128, which leaves one
range to choose: minmax. Its calibrator takes other numbers, ``quantize_static`` has no key for them.
"""

from __future__ import annotations

from pathlib import Path

from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data

_BINS = 1024
_LEVELS = 256


def write_entropy_ranges(model: Path, operators: list[str], reader: CalibrationDataReader, ranges: Path) -> None:
    """Calibrate the model and write ``ranges``, which ``quantize_static`` reads as its ``calibration_cache_path``.

    Args:
        model: the file of the prepared model.
        operators: types whose inputs and outputs are calibrated, the ones that will be quantized.
        reader: at its first row.
    """
    calibrator = create_calibrator(
        model,
        operators,
        augmented_model_path=str(ranges.with_suffix(".augmented.onnx")),
        calibrate_method=CalibrationMethod.Entropy,
        providers=["CPUExecutionProvider"],
        extra_options={"num_bins": _BINS, "num_quantized_bins": _LEVELS},
    )
    calibrator.collect_data(reader)
    save_tensors_data(calibrator.compute_data(), ranges)
