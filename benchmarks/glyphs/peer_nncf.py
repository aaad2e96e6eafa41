"""NNCF's post-training quantization, run by NNCF's own environment: ``peer_nncf.py FOLDER DATA MAX_DROP ROWS``.

Writes ``nncf.onnx`` (``nncf.quantize`` with its defaults for CPUs, all calibration rows), ``nncf-mixed.onnx`` (its
other preset: asymmetric activations) and ``nncf-control.onnx`` (``quantize_with_accuracy_control``), and
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


def main(folder: Path, data: Path, max_drop: float, validation_rows: int) -> None:
    rows = np.load(data / "calibration.npy", allow_pickle=False)
    calibration = nncf.Dataset([{"image": row[None]} for row in rows])
    images = np.load(data / "validation.npy", allow_pickle=False)[:validation_rows]
    labels = np.load(data / "validation.labels.npy", allow_pickle=False)[:validation_rows]
    # One sample per item, so that the layers are ranked on single samples, as its documentation asks.
    validation = nncf.Dataset([(image[None], label) for image, label in zip(images, labels, strict=True)], _feed)
    cpu = {"target_device": nncf.TargetDevice.CPU, "subset_size": len(rows)}
    recipes: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
        "nncf": lambda model: nncf.quantize(model, calibration, **cpu),
        "nncf-mixed": lambda model: nncf.quantize(model, calibration, preset=nncf.QuantizationPreset.MIXED, **cpu),
        "nncf-control": lambda model: nncf.quantize_with_accuracy_control(
            model, calibration, validation, _validate, max_drop=max_drop, **cpu
        ),
    }
    made: dict[str, Any] = {"versions": {name: importlib.metadata.version(name) for name in VERSIONS}}
    for name, quantize in recipes.items():
        began = time.monotonic()
        try:
            onnx.save(quantize(onnx.load(folder / "fp32.onnx")), folder / f"{name}.onnx")
            made[name] = {"seconds": time.monotonic() - began}
        except Exception as error:  # noqa: BLE001 - a peer that fails is a row of the table, not the end of it
            made[name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
    (folder / "peer_nncf.json").write_text(json.dumps(made, indent=2) + "\n")


def _feed(item: Any) -> dict[str, Any]:
    return {"image": item[0]}


def _validate(model: onnx.ModelProto, items: Iterable[Any]) -> tuple[float, list[float]]:
    """Accuracy, and whether each sample is right: NNCF 3.4 ranks by logits for OpenVINO only, and fails for ONNX."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    right = [float(session.run(None, {"image": image})[0].argmax() == label) for image, label in items]
    return float(np.mean(right)), right


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
