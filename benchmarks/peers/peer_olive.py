"""Olive's static quantization, run by Olive's own environment: ``peer_olive.py FOLDER``.

Writes ``olive.onnx`` (the pass ``OnnxStaticQuantization`` with its defaults) and ``olive-x86.onnx`` (unsigned
activations and a scale per channel, as ONNX Runtime advises for x86), and ``peer_olive.json`` with seconds per file.
Knows nothing of Winnow.
"""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from olive.data.config import DataComponentConfig, DataConfig
from olive.data.registry import Registry
from olive.model import ONNXModelHandler
from olive.passes.olive_pass import create_pass_from_dict
from olive.passes.onnx.quantization import OnnxStaticQuantization

VERSIONS = ("olive-ai", "onnx", "onnxruntime", "torch", "numpy")
RECIPES: dict[str, dict[str, Any]] = {
    "olive": {},
    "olive-x86": {"per_channel": True, "precision": "int8", "activation_type": "uint8"},
}
BATCH = 16
READ: set[int] = set()
"""Rows that Olive asked for, so that the record can say how many it calibrated on."""


class Rows(torch.utils.data.Dataset[Any]):
    """Rows of an .npz file; a label belongs to Olive's form and is not looked at."""

    def __init__(self, file: str, names: list[str]) -> None:
        with np.load(file, allow_pickle=False) as archive:
            self.arrays = {name: archive[name] for name in names}

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, number: int) -> tuple[dict[str, Any], int]:
        READ.add(number)
        return {name: values[number] for name, values in self.arrays.items()}, 0


@Registry.register_dataset()  # type: ignore[untyped-decorator]
def npz_rows(file: str, names: list[str], **_: Any) -> Rows:
    return Rows(file, names)


def main(folder: Path) -> None:
    names = [tensor.name for tensor in onnx.load(folder / "fp32.onnx").graph.input]
    given = {"file": str(folder / "calibration.npz"), "names": names}
    rows = DataConfig(
        name="rows",
        load_dataset_config=DataComponentConfig(type="npz_rows", params=given),
        pre_process_data_config=DataComponentConfig(type="skip_pre_process"),
        post_process_data_config=DataComponentConfig(type="skip_post_process"),
        dataloader_config=DataComponentConfig(params={"batch_size": BATCH}),
    )
    made: dict[str, Any] = {"versions": {name: importlib.metadata.version(name) for name in VERSIONS}}
    for name, options in RECIPES.items():
        READ.clear()
        began = time.monotonic()
        try:
            with tempfile.TemporaryDirectory() as work:
                step = create_pass_from_dict(OnnxStaticQuantization, {"data_config": rows, **options}, True)
                answer = step.run(ONNXModelHandler(str(folder / "fp32.onnx")), str(Path(work) / "out.onnx"))
                shutil.copyfile(answer.model_path, folder / f"{name}.onnx")
            made[name] = {"seconds": time.monotonic() - began, "calibration_rows": len(READ)}
        except Exception as error:  # noqa: BLE001 - a peer that fails is a row of the table, not the end of it
            made[name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
    (folder / "peer_olive.json").write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
