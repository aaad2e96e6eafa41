"""NNCF's post-training quantization, run by NNCF's own environment: ``peer_nncf.py FOLDER MAX_DROP ROWS``.

Writes ``nncf.onnx`` (``nncf.quantize`` with its defaults for CPUs, all calibration rows), ``nncf-mixed.onnx`` (its
other preset: asymmetric activations) and, for classes, ``nncf-control.onnx`` (``quantize_with_accuracy_control``), and
``peer_nncf.json`` with seconds per file. Knows nothing of Winnow.
"""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import onnx
import onnxruntime

VERSIONS = ("nncf", "onnx", "onnxruntime", "numpy")


def main(folder: Path, max_drop: float, validation_rows: int) -> None:
    names = [tensor.name for tensor in onnx.load(folder / "fp32.onnx").graph.input]
    rows, _ = _samples(folder / "calibration.npz", names)
    calibration = nncf.Dataset(rows)
    cpu = {"target_device": nncf.TargetDevice.CPU, "subset_size": len(rows)}
    recipes: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
        "nncf": lambda model: nncf.quantize(model, calibration, **cpu),
        "nncf-mixed": lambda model: nncf.quantize(model, calibration, preset=nncf.QuantizationPreset.MIXED, **cpu),
    }
    asked, targets = _samples(folder / "validation.npz", names, validation_rows)
    if targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer):
        # One sample per item, so that the layers are ranked on single samples, as its documentation asks.
        validation = nncf.Dataset(list(zip(asked, targets, strict=True)), lambda item: item[0])
        recipes["nncf-control"] = lambda model: nncf.quantize_with_accuracy_control(
            model, calibration, validation, _validate, max_drop=max_drop, **cpu
        )
    made: dict[str, Any] = {"versions": {name: importlib.metadata.version(name) for name in VERSIONS}}
    for name, quantize in recipes.items():
        began = time.monotonic()
        try:
            onnx.save(quantize(onnx.load(folder / "fp32.onnx")), folder / f"{name}.onnx")
            made[name] = {"seconds": time.monotonic() - began}
        except Exception as error:  # noqa: BLE001 - a peer that fails is a row of the table, not the end of it
            made[name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
    (folder / "peer_nncf.json").write_text(json.dumps(made, indent=2) + "\n")


def _samples(file: Path, names: list[str], count: int | None = None) -> tuple[list[dict[str, Any]], Any]:
    """One feed per row, each of one row, and the targets."""
    with np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name][:count] for name in names}
        targets = archive["target"][:count]
    return [{name: values[i : i + 1] for name, values in arrays.items()} for i in range(len(targets))], targets


def _validate(model: onnx.ModelProto, items: Iterable[Any]) -> tuple[float, list[float]]:
    """Accuracy, and whether each sample is right: NNCF 3.4 ranks by logits for OpenVINO only, and fails for ONNX."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    right = [float(session.run(None, feed)[0].argmax() == label) for feed, label in items]
    return float(np.mean(right)), right


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
