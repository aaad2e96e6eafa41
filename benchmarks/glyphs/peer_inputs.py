"""What every tool of the comparison gets: the teacher as one fp32 ONNX file, and rows of the benchmark's splits.

``python benchmarks/glyphs/peer_inputs.py NETWORK FOLDER DATA`` writes ``FOLDER/fp32.onnx``, and into DATA, where they
are not there yet, ``<split>.npy`` and ``<split>.labels.npy`` of calibration (512 rows, evenly over the classes),
validation and test. A process of its own: those that are timed shall not have loaded torch.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path += [str(HERE.parent.parent), str(HERE)]

import safetensors.torch  # noqa: E402
import torch  # noqa: E402
from glyph_workload import ROWS, Glyphs  # noqa: E402

from tasks.export.onnx_export import export_onnx  # noqa: E402
from tasks.export.raw_inputs import RawInputs  # noqa: E402
from tasks.quantize.calibration import choose_rows  # noqa: E402

CALIBRATION_ROWS = 512


def write_data(data: Path) -> None:
    """Draw the three splits; each depends on its own seed only, so the training images need not be drawn."""
    if all((data / f"{split}.npy").exists() for split in ROWS if split != "train"):
        return
    data.mkdir(parents=True, exist_ok=True)
    for split, columns in Glyphs(rows={"train": 1}).splits().items():
        images, labels = columns["image"], columns["target"]
        if split == "calibration":
            rows = choose_rows(labels, CALIBRATION_ROWS, stratify=True, seed=0)
            images, labels = images[rows], labels[rows]
        if split != "train":
            np.save(data / f"{split}.labels.npy", labels, allow_pickle=False)
            np.save(data / f"{split}.npy", images, allow_pickle=False)


def write_model(network: str, teacher: Path, file: Path, data: Path) -> None:
    """Export the teacher, with its preprocessing inside."""
    workload = Glyphs(network)  # type: ignore[arg-type]
    model = workload.model("teacher")
    model.load_state_dict(safetensors.torch.load_file(teacher))
    rows = torch.from_numpy(np.load(data / "validation.npy", mmap_mode="r", allow_pickle=False)[:8].copy())
    module = RawInputs(model.eval(), workload.preprocess, ("image",))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(export_onnx(module, {"image": rows}, output="logits"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen, weights, folder, cache = sys.argv[1], *(Path(a) for a in sys.argv[2:5])
    write_data(cache)
    write_model(chosen, weights, folder / "fp32.onnx", cache)
