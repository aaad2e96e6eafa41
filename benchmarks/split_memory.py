"""How much memory a run's processes take for each megabyte of data: the chain at several sizes of generated data.

    python benchmarks/split_memory.py          images that splits() returns, 20 and 170 MB
    python benchmarks/split_memory.py parts    a table in files, at 1, 4 and 16 times 10 MB

Starts a stack of its own. The table shows, per process, the peak of its memory at each size (without what is mapped
from files and can be read again), and how much the difference of the last two is for each megabyte of data (as the
arrays of all four splits). docs/memory.md has the result.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

HERE = Path(__file__).parent.absolute()
sys.path.append(str(HERE.parent))

from benchmarks.own_stack import own_stack, unwind_on_signals  # noqa: E402

MEGABYTES = (20, 170)
PARTS = (10, 40, 160)
FILES, COLUMNS = 8, 40
SHARES = {"train": 0.7, "calibration": 0.02, "validation": 0.14, "test": 0.14}
PROCESSES = {
    "great_expectations": "data, validate",
    "torch._dynamo": "train, distill, prune, export",
    "serving.probe": "measure: the engine",
    "tasks.running.child": "quantize, measure",
    "/winnow run": "the run itself",
}
"""A word of the command line, and what such a process does; the first that fits counts."""
IMAGES = 'path: "split_memory:Noise", folder: "{folder}", arguments: {{megabytes: {megabytes}}}'
TABLE = 'path: "winnow:Tabular", arguments: {{source: "{folder}/*.parquet", target: answer}}'
SPEC = """
schema: 1
model: memory-{megabytes}
workload: {{{workload}}}
train: {{epochs: 1, batch_size: 1024}}
distill: {{epochs: 1, batch_size: 1024}}
prune: {{epochs: 1, ratio: 0.5, batch_size: 1024, batchnorm_batches: 5}}
quantize: {{methods: [static]}}
measure: {{rounds: 5, seconds: 0.1, predict_batch: 64}}
gates: {{margin: 0.9, per_class_margin: null}}
"""


class Noise:
    """Grey images of noise, uint8 [N, 1, 32, 32], a little brighter where the target is 1."""

    def __init__(self, megabytes: int) -> None:
        self.rows = megabytes * 1_000_000 // 1024

    def splits(self) -> dict[str, dict[str, np.ndarray]]:
        random = np.random.default_rng(0)
        return {name: self._split(round(self.rows * share), random) for name, share in SHARES.items()}

    def _split(self, rows: int, random: np.random.Generator) -> dict[str, np.ndarray]:
        target = random.integers(0, 2, rows)
        image = random.integers(0, 200, (rows, 1, 32, 32), dtype=np.uint8)
        image += (target * 40).astype(np.uint8)[:, None, None, None]
        return {"image": image, "target": target}

    def model(self, role: str, width: float = 1.0) -> nn.Module:
        return Small(round(16 * width))

    def preprocess(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"image": inputs["image"].float() / 255}


class Small(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 8, stride=8)
        self.head = nn.Linear(16 * channels, 2)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.conv(image)).flatten(1))
        return logits


def main(parts: bool) -> None:
    """Run all sizes and print the table."""
    unwind_on_signals()
    peaks, seconds = {}, {}
    sizes = PARTS if parts else MEGABYTES
    with tempfile.TemporaryDirectory() as folder, own_stack(Path(folder) / "home") as stack:
        for megabytes in sizes:
            source = write_table(Path(folder) / f"table-{megabytes}", megabytes) if parts else HERE
            workload = (TABLE if parts else IMAGES).format(folder=source, megabytes=megabytes)
            spec = Path(folder) / f"{megabytes}.yaml"
            spec.write_text(SPEC.format(megabytes=megabytes, workload=workload))
            began = time.monotonic()
            with Watch() as watch:
                code, said = stack.relay("run", str(spec), "--no-deploy", "--json")
            if code:
                raise SystemExit(f"the run of {megabytes} MB ended with {code}: {said.decode()[-2000:]}")
            peaks[megabytes], seconds[megabytes] = watch.peaks, time.monotonic() - began
    print(f"| process | {' | '.join(f'{size} MB of data' for size in sizes)} | per MB of data |")
    print(f"|---|{'--:|' * (len(sizes) + 1)}")
    small, large = sizes[-2:]
    for process in dict.fromkeys(PROCESSES.values()):
        found = {size: peaks[size].get(process, 0) / 1e6 for size in sizes}
        told = " | ".join(f"{value:.0f} MB" for value in found.values())
        print(f"| {process} | {told} | {(found[large] - found[small]) / (large - small):.2f} MB |")
    print(f"| (seconds) | {' | '.join(f'{value:.0f}' for value in seconds.values())} | |")


def write_table(folder: Path, megabytes: int) -> Path:
    """Files of 40 columns of noise and an answer; ``megabytes`` as the FP32 that is trained on."""
    folder.mkdir()
    rows = megabytes * 1_000_000 // (4 * COLUMNS) // FILES
    for number in range(FILES):
        values = np.random.default_rng(number).normal(size=(rows, COLUMNS)).astype(np.float32)
        columns: dict[str, pa.Array] = {f"c{place:02}": pa.array(values[:, place]) for place in range(COLUMNS)}
        columns["answer"] = pa.array((values[:, :3].sum(axis=1) > 0).astype(np.int64))
        pq.write_table(pa.table(columns), folder / f"{number}.parquet", row_group_size=10_000)
    return folder


class Watch:
    """Looks at all processes below this one, twenty times a second; ``peaks``: bytes by what the process does."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.is_set():
            for process in psutil.Process().children(recursive=True):
                try:
                    line, sizes = " ".join(process.cmdline()), process.memory_info()
                except psutil.NoSuchProcess:
                    continue
                what = next((kind for word, kind in PROCESSES.items() if word in line), None)
                if what is not None:
                    self.peaks[what] = max(self.peaks.get(what, 0), sizes.rss - sizes.shared)
            time.sleep(0.05)


if __name__ == "__main__":
    try:
        main(parts=sys.argv[1:] == ["parts"])
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"the stack did not start: {error}") from error
