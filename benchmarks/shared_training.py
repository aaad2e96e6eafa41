"""What it costs to share a training out among processes (``parallel``), and what a kill costs it.

    python benchmarks/shared_training.py speed [--rounds 3] [--rows 2560] [--output shared_training.json]
    python benchmarks/shared_training.py kills [--kills 20] [--seed 0]

``speed``: the VGG of benchmarks/glyphs on images of noise, batch 128, one epoch, in turns: one process of one thread
with 8 shards, two processes that share them, and one process with a thread for each core as it is without
``parallel``. ``kills``: a small training on two processes loses a rank at random moments, by SIGKILL; each time it goes
on, on 1, 2 or 4 processes, and ends with the bits of one that nobody disturbed. Exit status 1 where it does not, or
where a process is left 5 s after the last one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

import numpy as np
import psutil
import torch

from benchmarks.machine_facts import circumstances
from model_registry.manifest import hash_bytes
from tasks.running.ranks import joined
from tasks.running.stage import WorkloadRef
from tasks.torch_models.fit import fit
from tasks.torch_models.fit_checkpoint import pack
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData
from tasks.workloads.vgg import VggClassifier
from tasks.workloads.workload import Workload

_SHARDS = 8
_WAYS = {"1 process, 1 thread": (1, 1, _SHARDS), "2 processes": (2, 1, _SHARDS), "1 process, 2 threads": (1, 2, 1)}
"""Processes, threads of each, shards."""
_LEFT_AFTER = 5.0
_EPOCHS = 12


class Noise:
    """Images [N, 3, 32, 32] without meaning, in 40 classes; an eighth as many rows to validate on, at least 64."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def model(self, role: str, width: float = 1.0) -> torch.nn.Module:
        return VggClassifier(shape=(3, 32, 32), classes=40, width=width)

    def splits(self) -> dict[str, Any]:
        chance = np.random.default_rng(0)
        return {
            name: {"image": chance.standard_normal((rows, 3, 32, 32), dtype=np.float32), "target": np.arange(rows) % 40}
            for name, rows in (("train", self.rows), ("validation", max(64, self.rows // 8)))
        }


class Kept:
    """A checkpoint in a file, replaced whole."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def save(self, epoch: int, make: Any, *, last: bool) -> None:
        partial = self.file.with_suffix(".partial")
        partial.write_bytes(make())
        partial.replace(self.file)

    def load(self) -> bytes | None:
        return self.file.read_bytes() if self.file.exists() else None


def data(rows: int, *, small: bool) -> tuple[TrainingData, torch.nn.Module]:
    """The rows, and the model that learns them."""
    noise = Noise(rows)
    splits = noise.splits()
    torch.manual_seed(0)
    model = noise.model("teacher", width=0.25 if small else 1.0)
    workload = Workload(noise, WorkloadRef(path="benchmarks.shared_training:Noise"))
    return TrainingData(workload, splits["train"], splits["validation"]), model


def rank(number: int, count: int, meeting: Path, asked: dict[str, Any]) -> None:
    """Be one of the processes; prints what it took and the digest of what it has."""
    torch.set_num_threads(asked["threads"])
    columns, model = data(asked["rows"], small=asked["small"])
    settings = Training(
        epochs=asked["epochs"], batch_size=asked["batch"], learning_rate=1e-3, shards=asked["shards"], amp="off"
    )
    kept = Kept(Path(asked["checkpoint"])) if asked["checkpoint"] else None

    def train() -> None:
        fit(model, columns, settings, device="cpu", checkpoints=kept)

    def timed() -> dict[str, Any]:
        used, began = _cpu_seconds(), time.perf_counter()
        train()
        seconds, used = time.perf_counter() - began, _cpu_seconds() - used
        digest = hash_bytes(pack({"model": dict(model.state_dict())}))
        return {"seconds": seconds, "cpu_seconds": used, "digest": digest}

    if count == 1:
        answer = timed()
    else:
        with joined(number, count, meeting=meeting, seconds=120):
            answer = timed()
    answer["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(answer), flush=True)
    os._exit(0)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def start(count: int, folder: Path, **asked: Any) -> list[subprocess.Popen[str]]:
    """The ranks of one training."""
    meeting = folder / f"meeting-{time.monotonic_ns()}"
    command = [sys.executable, __file__, "rank"]
    return [
        subprocess.Popen(
            [*command, str(number), str(count), str(meeting), json.dumps(asked)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]


def answers(running: list[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    """What the ranks printed last."""
    said = [process.communicate() for process in running]
    for process, (_, err) in zip(running, said, strict=True):
        if process.returncode:
            sys.exit(err)
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


def speed(rounds: int, rows: int) -> dict[str, Any]:
    """Images per second and CPU seconds of each way, in turns."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in _WAYS}
    digests = set()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for way, (count, threads, shards) in _WAYS.items():
                ranks = answers(
                    start(
                        count, Path(folder), threads=threads, shards=shards, rows=rows, small=False, epochs=1,
                        batch=128, checkpoint="",
                    )
                )  # fmt: skip
                digests |= {one["digest"] for one in ranks} if shards > 1 else set()
                found[way].append(
                    {
                        "images_per_second": rows / max(one["seconds"] for one in ranks),
                        "cpu_seconds": sum(one["cpu_seconds"] for one in ranks),
                    }
                )
    table = {
        way: {key: {"median": median(one[key] for one in ones), "all": [one[key] for one in ones]} for key in ones[0]}
        for way, ones in found.items()
    }
    parameters = sum(p.numel() for p in data(2, small=False)[1].parameters())
    steps = -(-rows // 128)
    return {
        **circumstances(("torch", "numpy")),
        "ways": table,
        "one_digest": len(digests) == 1,
        "sent_bytes_per_rank": {
            ranks: 4 * parameters * steps * doublings for doublings, ranks in enumerate((1, 2, 4, 8))
        },
    }


def kills(count: int, seed: int) -> bool:
    """Whether a training that loses a rank again and again has the undisturbed bits, and nothing is left."""
    chance = random.Random(seed)
    asked = {"threads": 1, "shards": 4, "rows": 640, "small": True, "epochs": _EPOCHS, "batch": 64}
    begun: list[int] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.monotonic()
        (straight,) = answers(start(1, folder, **asked, checkpoint=""))
        longest = time.monotonic() - began
        done, wrong, trainings = 0, 0, 0
        while done < count:
            trainings += 1
            checkpoint = folder / f"training-{trainings}"
            while True:
                ranks = chance.choice((1, 2, 2, 4))
                running = start(ranks, folder, **asked, checkpoint=str(checkpoint))
                begun += [process.pid for process in running]
                victim = chance.choice(running)
                deadline = time.monotonic() + chance.uniform(0.3, 0.9) * longest if done < count else float("inf")
                while time.monotonic() < deadline and any(process.poll() is None for process in running):
                    time.sleep(0.01)
                if victim.poll() is not None or done >= count:
                    break
                os.kill(victim.pid, signal.SIGKILL)
                done += 1
                for (
                    process
                ) in running:  # the others find out, or are ended as run_ranks does: one may not have met them
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.communicate(timeout=5)
                        continue
                    process.kill()
                    process.communicate()
            wrong += any(one["digest"] != straight["digest"] for one in answers(running))
        time.sleep(_LEFT_AFTER)
    left = [pid for pid in begun if psutil.pid_exists(pid)]
    print(f"{done} kills in {trainings} trainings: {wrong} ended with other bits, {len(left)} processes left")
    return not wrong and not left


def main() -> None:
    if sys.argv[1:2] == ["rank"]:
        rank(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), json.loads(sys.argv[5]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "kills"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2560)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("shared_training.json"))
    given = parser.parse_args()
    if given.what == "kills":
        sys.exit(not kills(given.kills, given.seed))
    answer = speed(given.rounds, given.rows)
    given.output.write_text(json.dumps(answer, indent=1))
    for way, numbers in answer["ways"].items():
        print(f"{way:22} " + ", ".join(f"{key} {values['median']:.1f}" for key, values in numbers.items()))
    print(f"one digest: {answer['one_digest']}; sent per rank and epoch: {answer['sent_bytes_per_rank']}")


if __name__ == "__main__":
    main()
