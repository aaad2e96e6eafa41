"""ONNX Runtime's own static quantization: ``peer_onnxruntime.py FOLDER``.

Writes ``onnxruntime.onnx`` (``quantize_static`` with its defaults after its own pre-processing) and
``onnxruntime-x86.onnx`` (unsigned activations and a scale per channel, as its documentation advises for x86), and
``peer_onnxruntime.json`` with seconds per file. Knows nothing of Winnow.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

VERSIONS = ("onnxruntime", "onnx", "numpy")
RECIPES: dict[str, dict[str, Any]] = {
    "onnxruntime": {},
    "onnxruntime-x86": {"per_channel": True, "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8},
}


class Rows(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime has no types
    """Rows of an .npz file, one at a time."""

    def __init__(self, file: Path, names: list[str]) -> None:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in names}
        count = len(next(iter(arrays.values())))
        self.rows = iter({name: values[i : i + 1] for name, values in arrays.items()} for i in range(count))

    def get_next(self) -> dict[str, Any] | None:
        return next(self.rows, None)


def main(folder: Path) -> None:
    names = [tensor.name for tensor in onnx.load(folder / "fp32.onnx").graph.input]
    made: dict[str, Any] = {"versions": {name: importlib.metadata.version(name) for name in VERSIONS}}
    for name, options in RECIPES.items():
        began = time.monotonic()
        try:
            with tempfile.TemporaryDirectory() as work:
                prepared = Path(work) / "prepared.onnx"
                quant_pre_process(str(folder / "fp32.onnx"), str(prepared))
                rows = Rows(folder / "calibration.npz", names)
                quantize_static(str(prepared), str(folder / f"{name}.onnx"), rows, **options)
            made[name] = {"seconds": time.monotonic() - began}
        except Exception as error:  # noqa: BLE001 - a peer that fails is a row of the table, not the end of it
            made[name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
    (folder / "peer_onnxruntime.json").write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
