"""What finding the ranges of activations takes: our observation beside ONNX Runtime's calibrators, in turns.

    python benchmarks/calibration_memory.py    a VGG of 0.98 M parameters at 3x32x32, 256 and 1 024 rows; 15 minutes

The peak is what a process of its own took beyond what it had before; ranges are compared, tensor by tensor.
docs/memory.md and LOG.md have the results.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

HERE = Path(__file__).parent.absolute()
sys.path.append(str(HERE.parent))

from tasks.quantize.calibration import RowReader  # noqa: E402
from tasks.quantize.observed_ranges import RANGES, write_ranges  # noqa: E402

ROWS = (256, 1024)
WAYS = ("onnxruntime", "1 worker", "2 workers")
OPERATORS = ["Conv", "Relu", "MaxPool", "Gemm"]
PERCENTILE = 99.99


def main() -> None:
    """Each method, number of rows and way in a process of its own; print a table."""
    print("| method | rows | way | CPU seconds | seconds | peak beyond the start | the same ranges |")
    print("|---|--:|---|--:|--:|--:|---|")
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        for method in RANGES:
            for rows in ROWS:
                found = {way: measured(folder, method, str(rows), way) for way in WAYS}
                for way, told in found.items():
                    same = "yes" if told["ranges"] == found[WAYS[0]]["ranges"] else "NO"
                    numbers = f"{told['cpu']:.1f} | {told['wall']:.1f} | {told['peak'] / 1e6:.0f} MB"
                    print(f"| {method} | {rows} | {way} | {numbers} | {same} |", flush=True)


def measured(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def write_model(folder: Path) -> None:
    import torch

    from tasks.export.onnx_export import export_onnx
    from tasks.export.raw_inputs import RawInputs
    from tasks.quantize.prepared_graph import prepare
    from tasks.workloads.vgg import VggClassifier

    torch.manual_seed(0)
    module = RawInputs(VggClassifier((3, 32, 32), 10), lambda inputs: inputs, ("image",))
    file = export_onnx(module, {"image": torch.rand(4, 3, 32, 32)}, output="logits")
    onnx.save_model(prepare(file, folder), folder / "model.onnx")


def observe(folder: Path, method: str, rows: int, way: str) -> None:
    """Find the ranges once; JSON to stdout."""
    model, ranges = folder / "model.onnx", folder / "ranges.json"
    reader = RowReader({"image": np.random.default_rng(0).random((rows, 3, 32, 32), dtype=np.float32)})
    start, began, worked = peak(), time.monotonic(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        if way == "onnxruntime":
            by_onnxruntime(model, reader, ranges, method)
        else:
            write_ranges(model, OPERATORS, reader, ranges, method=method, percentile=PERCENTILE, workers=int(way[0]))
    told = {"cpu": time.process_time() - worked, "wall": time.monotonic() - began, "peak": peak() - start}
    print(json.dumps({**told, "ranges": json.loads(ranges.read_text())["data"]}))


def by_onnxruntime(model: Path, reader: RowReader, ranges: Path, method: str) -> None:
    from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data

    levels = {"num_bins": 1024, "num_quantized_bins": 256} if method == "entropy" else {"percentile": PERCENTILE}
    calibrator = create_calibrator(
        model,
        OPERATORS,
        augmented_model_path=str(ranges.with_suffix(".onnx")),
        calibrate_method=RANGES[method],
        extra_options=levels,
    )
    calibrator.collect_data(reader)
    save_tensors_data(calibrator.compute_data(), ranges)


def peak() -> int:
    """Bytes; getrusage's would be those of the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        observe(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        main()
