"""How much memory a run's processes take for each megabyte of data: the chain at two sizes of generated images.

    python benchmarks/split_memory.py

Starts a stack of its own. The table shows, per process, the peak of its resident memory at both sizes, and how much
the difference is for each megabyte of data (as the arrays of all four splits). docs/memory.md has the result.
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
import torch
from torch import Tensor, nn

HERE = Path(__file__).parent.absolute()
sys.path.append(str(HERE.parent))

from benchmarks.own_stack import own_stack, unwind_on_signals  # noqa: E402

MEGABYTES = (20, 170)
SHARES = {"train": 0.7, "calibration": 0.02, "validation": 0.14, "test": 0.14}
PROCESSES = {
    "great_expectations": "data, validate",
    "torch._dynamo": "train, distill, prune, export",
    "serving.probe": "measure: the engine",
    "tasks.running.child": "quantize, measure",
    "/winnow run": "the run itself",
}
"""A word of the command line, and what such a process does; the first that fits counts."""
SPEC = """
schema: 1
model: memory-{megabytes}
workload: {{path: "split_memory:Noise", folder: "{folder}", arguments: {{megabytes: {megabytes}}}}}
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


def main() -> None:
    """Run both sizes and print the table."""
    unwind_on_signals()
    peaks = {}
    with tempfile.TemporaryDirectory() as folder, own_stack(Path(folder) / "home") as stack:
        for megabytes in MEGABYTES:
            spec = Path(folder) / f"{megabytes}.yaml"
            spec.write_text(SPEC.format(megabytes=megabytes, folder=HERE))
            with Watch() as watch:
                code, _ = stack.relay("run", str(spec), "--no-deploy", "--json")
            if code:
                raise SystemExit(f"the run of {megabytes} MB ended with {code}")
            peaks[megabytes] = watch.peaks
    small, large = MEGABYTES
    print(f"| process | {small} MB of data | {large} MB of data | per MB of data |\n|---|--:|--:|--:|")
    for process in dict.fromkeys(PROCESSES.values()):
        first, second = peaks[small].get(process, 0) / 1e6, peaks[large].get(process, 0) / 1e6
        print(f"| {process} | {first:.0f} MB | {second:.0f} MB | {(second - first) / (large - small):.1f} MB |")


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
                    line, resident = " ".join(process.cmdline()), process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
                what = next((kind for word, kind in PROCESSES.items() if word in line), None)
                if what is not None:
                    self.peaks[what] = max(self.peaks.get(what, 0), resident)
            time.sleep(0.05)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"the stack did not start: {error}") from error
