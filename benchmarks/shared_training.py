"""What it costs to share a training out among processes (``parallel``), and what a kill costs it.

    python benchmarks/shared_training.py speed [--rounds 3] [--rows 2560] [--output shared_training.json]
    python benchmarks/shared_training.py kills [--kills 20] [--seed 0]
    python benchmarks/shared_training.py runs [--kills 20] [--seed 0]
    python benchmarks/shared_training.py memory [--rows 64] [--output shared_training.json]

``speed``: the VGG of benchmarks/glyphs on images of noise, batch 128, one epoch, in turns: one process of one thread
with 8 shards, two processes that share them, and one process with a thread for each core as it is without
``parallel``. ``kills``: a small training on two processes loses a rank at random moments, by SIGKILL; each time it goes
on, on 1, 2 or 4 processes, and ends with the bits of one that nobody disturbed. Exit status 1 where it does not, or
where a process is left 5 s after the last one. ``runs``: the same of ``winnow run`` on a stack of its
own, whose flow or one of whose ranks is killed. ``memory``: the largest resident memory of each process that trains a
model of 104 million weights with AdamW: one alone, two with DDP, two with FSDP2.
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
from benchmarks.own_stack import WINNOW, own_stack, unwind_on_signals
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
_MARK = "WINNOW_BENCHMARK_MARK"
_RUN = """schema: 1
model: shared
workload: {path: "winnow:Digits", arguments: {rows: 900}}
parallel: {shards: 4, processes: 2}
train: {epochs: 40, batch_size: 32}
measure: {rounds: 5, seconds: 0.05}
deploy: false
"""
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
    """A checkpoint in a file, replaced whole, and its parts beside it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def save(self, epoch: int, make: Any, *, last: bool) -> None:
        self.save_part("whole", make())

    def load(self) -> bytes | None:
        return self.load_part("whole")

    def save_part(self, name: str, data: bytes) -> None:
        partial = self.file.with_suffix(f".{name}.partial")
        partial.write_bytes(data)
        partial.replace(self.file.with_suffix(f".{name}"))

    def load_part(self, name: str) -> bytes | None:
        file = self.file.with_suffix(f".{name}")
        return file.read_bytes() if file.exists() else None


class LargeBlocks(torch.nn.Module):
    """16 blocks of 6.3 million weights each, 104 million in all; images [N, 3, 32, 32] to 40 classes."""

    def __init__(self) -> None:
        super().__init__()
        width, inner = 1024, 3072
        self.inwards, self.head = torch.nn.Linear(3 * 32 * 32, width), torch.nn.Linear(width, 40)
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.LayerNorm(width), torch.nn.Linear(width, inner), torch.nn.GELU(), torch.nn.Linear(inner, width)
            )
            for _ in range(16)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = self.inwards(image.flatten(1))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        answer: torch.Tensor = self.head(hidden)
        return answer


def data(rows: int, *, size: str) -> tuple[TrainingData, torch.nn.Module]:
    """The rows, and the model that learns them: small, whole, or large."""
    noise = Noise(rows)
    splits = noise.splits()
    torch.manual_seed(0)
    model = LargeBlocks() if size == "large" else noise.model("teacher", width=0.25 if size == "small" else 1.0)
    workload = Workload(noise, WorkloadRef(path="benchmarks.shared_training:Noise"))
    return TrainingData(workload, splits["train"], splits["validation"]), model


def rank(number: int, count: int, meeting: Path, asked: dict[str, Any]) -> None:
    """Be one of the processes; prints what it took and the digest of what it has."""
    torch.set_num_threads(asked["threads"])
    columns, model = data(asked["rows"], size=asked["size"])
    settings = Training(
        epochs=asked["epochs"],
        batch_size=asked["batch"],
        learning_rate=1e-3,
        shards=asked["shards"],
        engine=asked.get("engine"),
        amp="off",
    )
    kept = Kept(Path(asked["checkpoint"])) if asked["checkpoint"] else None

    def train() -> None:
        fit(model, columns, settings, device="cpu", checkpoints=kept)

    def timed() -> dict[str, Any]:
        used, began = _cpu_seconds(), time.perf_counter()
        train()
        seconds, used = time.perf_counter() - began, _cpu_seconds() - used
        digest = hash_bytes(pack({"model": dict(model.state_dict())})) if asked["size"] != "large" else ""
        return {"seconds": seconds, "cpu_seconds": used, "digest": digest}

    if count == 1:
        answer = timed()
    else:
        with joined(number, count, meeting=meeting.as_uri(), seconds=120):
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
                        count, Path(folder), threads=threads, shards=shards, rows=rows, size="whole", epochs=1,
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
    parameters = _parameters("whole")
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
    asked = {"threads": 1, "shards": 4, "rows": 640, "size": "small", "epochs": _EPOCHS, "batch": 64}
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


def runs(count: int, seed: int) -> bool:
    """Whether ``winnow run`` with ``parallel`` ends with the undisturbed digest though its flow or a rank is killed."""
    chance = random.Random(seed)
    done, wrong, left, trainings = {"flow": 0, "rank": 0}, 0, 0, 0
    with (
        tempfile.TemporaryDirectory() as name,
        own_stack(Path(name) / "home") as stack,
        contextlib.ExitStack() as begun,
    ):
        (Path(name) / "runs.yaml").write_text(_RUN)

        def begin(patience: int, mark: str) -> subprocess.Popen[str]:
            command = [str(WINNOW), "run", f"{name}/runs.yaml", "--json", "--set", f"train.patience={patience}"]
            environment = {**stack.environment, _MARK: mark}
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, cwd=name, env=environment, stdout=pipe, stderr=pipe, text=True)
            begun.callback(process.kill)  # however the benchmark ends; does nothing to one that has ended
            return process

        def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
            out, err = process.communicate()
            if not out:
                sys.exit(f"winnow run ended with {process.returncode}: {err}")
            report: dict[str, Any] = json.loads(out)
            return report

        def trained(report: dict[str, Any]) -> list[str]:
            """One variant, which is refused for not being smaller than itself: what counts is what was trained."""
            return [variant["digest"] for variant in report["variants"]]

        # A patience that no training reaches is part of its key alone: each is computed, to one result.
        straight = ended(begin(1000, "straight"))
        longest = next(line["seconds"] for line in straight["stages"] if line["name"] == "train")
        while sum(done.values()) < count:
            trainings += 1
            mark = f"kills-{trainings}"
            process = begin(1000 + trainings, mark)
            while sum(done.values()) < count and process.poll() is None:
                time.sleep(chance.uniform(0.1, 0.7) * longest)
                whom = chance.choice(("flow", "rank", "rank"))
                children = [one.pid for one in _marked(mark) if "tasks.running.child" in _command(one)]
                victims = [process.pid] if whom == "flow" else children[-2:]  # the ranks are the last to come
                if process.poll() is not None or len(children) < 2:
                    continue
                os.kill(chance.choice(victims), signal.SIGKILL)
                done[whom] += 1
                if whom == "flow":
                    process.communicate()
                    time.sleep(_LEFT_AFTER)
                    left += len(_marked(mark))
                    process = begin(1000 + trainings, mark)
            wrong += trained(ended(process)) != trained(straight)
            time.sleep(_LEFT_AFTER)
            left += len(_marked(mark))
    print(f"kills {done} in {trainings} runs: {wrong} ended with another digest, {left} processes left")
    return not wrong and not left


def _marked(mark: str) -> list[psutil.Process]:
    """Processes that were started with it in their environment, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _command(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def memory(rows: int) -> dict[str, Any]:
    """Peak resident bytes of each process that trains the large model for two epochs, with checkpoints and without."""
    found: dict[str, Any] = {}
    for saved in (False, True):
        for engine, count in (("ddp", 1), ("ddp", 2), ("fsdp", 2)):
            with tempfile.TemporaryDirectory() as folder:
                ranks = answers(
                    start(
                        count, Path(folder), threads=1, shards=1, rows=rows, size="large", epochs=2, batch=32,
                        engine=engine, checkpoint=f"{folder}/kept" if saved else "",
                    )
                )  # fmt: skip
            way = "1 process" if count == 1 else f"{engine}, {count} processes"
            found[f"{way}{', checkpoints' if saved else ''}"] = {
                "peak_bytes": [one["peak_bytes"] for one in ranks],
                "seconds": max(one["seconds"] for one in ranks),
            }
    return {**circumstances(("torch", "numpy")), "parameters": _parameters("large"), "ways": found}


def _parameters(size: str) -> int:
    return sum(p.numel() for p in data(2, size=size)[1].parameters())


def tell_memory(answer: dict[str, Any]) -> None:
    """Print the largest process of each way, and its share of one process's memory."""
    ways = {way: max(numbers["peak_bytes"]) for way, numbers in answer["ways"].items()}
    for way, peak in ways.items():
        alone = ways["1 process, checkpoints" if way.endswith("checkpoints") else "1 process"]
        seconds = answer["ways"][way]["seconds"]
        print(f"{way:32} {peak / 1e9:.2f} GB per process, {peak / alone:.2f} of one process; {seconds:.0f} s")


def main() -> None:
    if sys.argv[1:2] == ["rank"]:
        rank(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), json.loads(sys.argv[5]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "kills", "runs", "memory"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2560)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("shared_training.json"))
    given = parser.parse_args()
    if given.what == "kills":
        sys.exit(not kills(given.kills, given.seed))
    if given.what == "runs":
        unwind_on_signals()
        sys.exit(not runs(given.kills, given.seed))
    if given.what == "memory":
        answer = memory(given.rows)
        given.output.write_text(json.dumps(answer, indent=1))
        tell_memory(answer)
        return
    answer = speed(given.rounds, given.rows)
    given.output.write_text(json.dumps(answer, indent=1))
    for way, numbers in answer["ways"].items():
        print(f"{way:22} " + ", ".join(f"{key} {values['median']:.1f}" for key, values in numbers.items()))
    print(f"one digest: {answer['one_digest']}; sent per rank and epoch: {answer['sent_bytes_per_rank']}")


if __name__ == "__main__":
    main()
