"""What it costs to answer a data set with `winnow predict`: beside a bare loop, per file, and at 1, 4 and 16 times.

    python benchmarks/batch_prediction.py --output batch.json

Starts a stack of its own and puts a small CNN into its store. The bare loop reads the same Parquet files with pyarrow
and runs ONNX Runtime on batches of the same size in one process of one thread; it writes nothing. Both take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent.absolute()
sys.path.append(str(HERE.parent))

from benchmarks.machine_facts import circumstances  # noqa: E402
from benchmarks.own_stack import own_stack, unwind_on_signals  # noqa: E402
from benchmarks.serving.serving_models import MODELS  # noqa: E402
from flows.batch.batch_answers import answer_all  # noqa: E402
from flows.reaching import reach_store  # noqa: E402

CNN = MODELS["cnn"]
BATCH, ROWS = 256, 2_000
"""Rows at once, and in a file of 25 MB."""
SIZES = (1, 4, 16)
SMALL = 60
"""Files of one row, to see what a file costs by itself."""


def main() -> int:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    unwind_on_signals()
    with tempfile.TemporaryDirectory(prefix="winnow-batch-") as name, own_stack(Path(name) / "home") as stack:
        os.environ.update(stack.environment)
        result = measure(Path(name), arguments.rounds)
    told = {**circumstances(("onnxruntime", "pyarrow", "numpy", "winnow-mlops")), **result}
    print(json.dumps(result, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(told, indent=1))
    return 0


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    store = reach_store()
    variant = CNN.write(folder / "model")
    for entry in variant.files:
        store.publish_bytes((folder / "model" / entry.path).read_bytes(), entry.path)
    files = {times: write_files(folder / f"rows-{times}", times, ROWS) for times in SIZES}
    answers = iter(range(1000))

    def ours(times: int, workers: int) -> float:
        done = answer_all(
            store, variant, str(files[times]), str(folder / f"answers-{next(answers)}"), workers=workers, batch=BATCH
        )
        assert done.computed == times
        return done.seconds

    bare, one = [], []
    for _ in range(rounds):
        bare.append(clock(lambda: bare_loop(folder / "model" / "model.onnx", files[4])))
        one.append(ours(4, 1))
    start = clock(
        lambda: answer_all(store, variant, str(write_files(folder / "no", 1, 1)), str(folder / "n"), workers=1)
    )
    small = write_files(folder / "small", SMALL, 1)
    each = clock(lambda: answer_all(store, variant, str(small), str(folder / "s"), workers=1))
    at = {times: ours(times, 2) for times in SIZES}
    return {
        "rows_per_second_bare": round(4 * ROWS / statistics.median(bare)),
        "rows_per_second_one_process": round(4 * ROWS / (statistics.median(one) - start)),
        "rows_per_second_one_process_with_its_start": round(4 * ROWS / statistics.median(one)),
        "spread_bare": [round(min(bare), 3), round(max(bare), 3)],
        "spread_one_process": [round(min(one), 3), round(max(one), 3)],
        "seconds_to_start": round(start, 2),
        "seconds_per_file": round((each - start) / (SMALL - 1), 4),
        "seconds_by_size_two_processes": {times: round(seconds, 2) for times, seconds in at.items()},
        "driver_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
    }


def write_files(folder: Path, files: int, rows: int) -> Path:
    """Parquet files of rows for the CNN."""
    folder.mkdir(exist_ok=True)
    size = int(np.prod(CNN.shape))
    for number in range(files):
        values = np.random.default_rng(number).standard_normal((rows, size)).astype(np.float32)
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), size)
        pq.write_table(pa.table({CNN.input: column}), folder / f"{number:05d}.parquet", compression="none")
    return folder


def bare_loop(model: Path, files: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for file in sorted(files.glob("*.parquet")):
        for part in pq.ParquetFile(file).iter_batches(batch_size=BATCH):
            values = part.column(0).flatten().to_numpy().reshape(-1, *CNN.shape)
            session.run(None, {CNN.input: values})


def clock(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
