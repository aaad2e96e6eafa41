"""How much memory a run's processes take for each megabyte of data: the chain at several sizes of generated data.

    python benchmarks/split_memory.py          images that splits() returns, 20 and 170 MB
    python benchmarks/split_memory.py parts    a table in files, at 1, 4 and 16 times 4 MB: data step and a training

The first starts a stack of its own. The table shows, per process, the peak of its memory at each size (without what is
mapped from files and can be read again), and how much the difference of the last two is for each megabyte of data (as
the arrays of all four splits). docs/memory.md has the result.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

HERE = Path(__file__).parent.absolute()
sys.path.append(str(HERE.parent))

from benchmarks.own_stack import own_stack, unwind_on_signals  # noqa: E402
from model_registry.manifest import FileEntry  # noqa: E402
from model_registry.store import Store  # noqa: E402
from tasks.running.splits import DataRef  # noqa: E402
from tasks.running.stage import Job, WorkloadRef  # noqa: E402
from tasks.torch_models.fit import fit  # noqa: E402
from tasks.torch_models.torch_variant import build  # noqa: E402
from tasks.torch_models.training import Training  # noqa: E402
from tasks.torch_models.training_data import TrainingData  # noqa: E402
from tasks.workloads.workload import load_workload  # noqa: E402

MEGABYTES = (20, 170)
PARTS = (4, 16, 64)
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
    """Run both sizes of the chain and print the table."""
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
    print_table(MEGABYTES, peaks)


def print_table(sizes: tuple[int, ...], peaks: dict[int, dict[str, int]]) -> None:
    """A row per process; the last column compares the last two sizes."""
    print(f"| process | {' | '.join(f'{size} MB of data' for size in sizes)} | per MB of data |")
    print(f"|---|{'--:|' * (len(sizes) + 1)}")
    small, large = sizes[-2:]
    for process in dict.fromkeys(name for found in peaks.values() for name in found):
        found = {size: peaks[size].get(process, 0) / 1e6 for size in sizes}
        told = " | ".join(f"{value:.0f} MB" for value in found.values())
        print(f"| {process} | {told} | {(found[large] - found[small]) / (large - small):.2f} MB |")


def compare_parts() -> None:
    """The data step and a training on a table in files, each size in processes of its own."""
    peaks: dict[int, dict[str, int]] = {}
    for megabytes in PARTS:
        with tempfile.TemporaryDirectory() as folder:
            write_table(Path(folder) / "table", megabytes)
            for what in ("check", "learn"):
                began = time.monotonic()
                done = subprocess.run(
                    [sys.executable, __file__, what, folder], stdout=subprocess.PIPE, text=True, check=True
                )
                told = json.loads(done.stdout.splitlines()[-1])
                peaks.setdefault(megabytes, {}).update(told)
                print(f"{megabytes} MB: {told}, {time.monotonic() - began:.0f} s", flush=True)
    print_table(PARTS, peaks)


def write_table(folder: Path, megabytes: int) -> None:
    """Files of 40 columns of noise and an answer; ``megabytes`` as the FP32 that is trained on."""
    folder.mkdir()
    rows = megabytes * 1_000_000 // (4 * COLUMNS) // FILES
    for number in range(FILES):
        values = np.random.default_rng(number).normal(size=(rows, COLUMNS)).astype(np.float32)
        columns: dict[str, pa.Array] = {f"c{place:02}": pa.array(values[:, place]) for place in range(COLUMNS)}
        columns["answer"] = pa.array((values[:, :3].sum(axis=1) > 0).astype(np.int64))
        pq.write_table(pa.table(columns), folder / f"{number}.parquet", row_group_size=10_000)


class FolderStore(Store):
    """Blobs in a folder, as no server is needed to measure who reads them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def _publish(self, content: bytes | Path, entry: FileEntry) -> None:
        if isinstance(content, Path):
            shutil.copyfile(content, self.folder / entry.sha256)
        else:
            (self.folder / entry.sha256).write_bytes(content)

    def fetch(self, entry: FileEntry, destination: Path) -> Path:
        return Path(shutil.copyfile(self.folder / entry.sha256, destination))

    def fetch_bytes(self, entry: FileEntry) -> bytes:
        return (self.folder / entry.sha256).read_bytes()


def measure_part(what: str, folder: Path) -> None:
    """Do what a stage's process does, and print the most private memory that it had, as JSON."""
    from tasks.data import DataSpec, data_child

    arguments = {"source": f"{folder}/table/*.parquet", "target": "answer"}
    workload = WorkloadRef(path="tasks.workloads.tabular:Tabular", arguments=arguments)
    store, known = FolderStore(folder / "store"), folder / "data.json"
    with Watch(ours=what) as watch:
        if what == "check":
            (folder / "work").mkdir()
            child: Any = SimpleNamespace(
                job=Job(run_id="parts", model="m", store="s3://none", workload=workload),
                spec=DataSpec().model_dump(mode="json"),
                workdir=folder / "work",
                store=store,
                progress=lambda fraction, text: None,
            )
            known.write_text(json.dumps(data_child.main(child).values["data"]))
        else:
            data = DataRef.model_validate_json(known.read_text())
            loaded = load_workload(workload, data.known)
            columns = TrainingData.read(store, data, loaded, folder / "splits")
            fit(
                build(loaded, "teacher", {}),
                columns,
                Training(epochs=1, batch_size=1024, learning_rate=1e-3),
                device="cpu",
            )
    print(json.dumps(watch.peaks))


class Watch:
    """Looks at all processes below this one, twenty times a second; ``peaks``: bytes by what the process does.

    Args:
        ours: what this process does, which then is the one that counts.
    """

    def __init__(self, ours: str | None = None) -> None:
        self._ours = ours
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
            if self._ours is not None:
                sizes = psutil.Process().memory_info()
                self.peaks[self._ours] = max(self.peaks.get(self._ours, 0), sizes.rss - sizes.shared)
            for process in psutil.Process().children(recursive=True) if self._ours is None else ():
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
        if len(sys.argv) == 3:
            measure_part(sys.argv[1], Path(sys.argv[2]))
        elif sys.argv[1:] == ["parts"]:
            compare_parts()
        else:
            main()
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"a process did not do its work: {error}") from error
