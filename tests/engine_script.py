"""Trains with torch's engines in 3 processes, for test_torch_engine: ``engine_script.py NUMBER FOLDER``.

Each case is trained by two of the processes, by all of them, and by one; each writes the curves and weights it had.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rank_script import Half, Kept, Scaled
from safetensors.torch import save_file
from taught_workloads import taught
from torch import Tensor, nn

from tasks.running.errors import SpecError
from tasks.running.ranks import Ranks, joined
from tasks.torch_models import torch_engine
from tasks.torch_models.fit import Fitted, fit
from tasks.torch_models.fit_checkpoint import Checkpoints
from tasks.torch_models.torch_variant import build
from tasks.torch_models.training import Engine, Training
from tasks.torch_models.training_data import TrainingData

COUNT = 3
SETTINGS = Training(epochs=3, batch_size=34, learning_rate=5e-3)
"""Six batches of 33 or 34 rows: two processes have 16 to 17 of them, three have 11 or 12."""
CASES = ("plain", "batchnorm", "objective", "unused", "blocks", "sgd", "again", "dropout")
ENGINES: tuple[Engine, ...] = ("ddp", "fsdp")


class Blocks(nn.Module):
    """Four residual blocks that are split one by one, a weight that two layers share, a scalar, and an unused layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inwards, self.outwards = nn.Linear(4, 16), nn.Linear(4, 16)
        self.outwards.weight = self.inwards.weight
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16)) for _ in range(4))
        self.gain, self.head, self.never = nn.Parameter(torch.ones(())), nn.Linear(16, 3), nn.Linear(16, 16)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.inwards(features) + self.outwards(features * 0.5)
        for block in self.blocks:
            hidden = hidden + block(hidden) * self.gain
        answer: Tensor = self.head(hidden)
        return answer


@dataclass
class Files:
    """Checkpoints in a folder that the processes share."""

    folder: Path
    until: int = 0

    def save(self, epoch: int, make: Callable[[], bytes], *, last: bool) -> None:
        if epoch <= (self.until or epoch):
            self.save_part("whole", make())

    def load(self) -> bytes | None:
        return self.load_part("whole")

    def save_part(self, name: str, data: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(data)

    def load_part(self, name: str) -> bytes | None:
        return (self.folder / name).read_bytes() if (self.folder / name).exists() else None


def taught_by(
    case: str, engine: Engine | None, checkpoints: Checkpoints | None = None, **changed: Any
) -> tuple[nn.Module, Fitted]:
    """The case's model, trained by all processes of the group; ``again``: trained twice, as pruning does it."""
    workload = taught("Squares" if case == "batchnorm" else "Blobs", **({"dropout": 0.3} if case == "dropout" else {}))
    splits = workload.splits()
    torch.manual_seed(0)
    made: dict[str, Callable[[], nn.Module]] = {"unused": Half, "blocks": Blocks, "again": Blocks}
    model = made[case]() if case in made else build(workload, "teacher", {}, seed=0)
    settings = replace(SETTINGS, engine=engine, optimizer="sgd" if case == "sgd" else "adamw", **changed)
    objective = Scaled(workload.loss) if case == "objective" else None
    data = TrainingData(workload, splits["train"], splits["validation"])
    if case == "again":
        fit(model, data, settings, device="cpu")
    fitted = fit(model, data, settings, objective=objective, device="cpu", checkpoints=checkpoints)
    return model, fitted


def write(name: str, trained: tuple[nn.Module, Fitted], folder: Path) -> None:
    model, fitted = trained
    tensors = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    save_file(tensors, folder / f"{name}.safetensors")
    facts = {"history": fitted.history, "resumed_at": fitted.resumed_at, "class": type(model).__name__}
    (folder / f"{name}.json").write_text(json.dumps(facts))


def gone_on(engine: Engine, here: int, folder: Path) -> Files:
    """What two processes had after an epoch, when they were killed, where this number of processes goes on with it."""
    copy = folder / f"on-{engine}-{here}"
    if not copy.exists() and (Ranks.current().number == 0):
        shutil.copytree(folder / f"half-{engine}", copy)
    if here > 1:
        torch.distributed.barrier()
    return Files(copy)


def work(here: int, number: int, folder: Path) -> None:
    """All that is trained by this number of processes."""
    for engine in ENGINES:
        for case in CASES:
            write(f"{case}-{engine}-{here}-{number}", taught_by(case, engine), folder)
        if here == 2:
            taught_by("blocks", engine, Files(folder / f"half-{engine}", until=1))
        write(f"resumed-{engine}-{here}-{number}", taught_by("blocks", engine, gone_on(engine, here, folder)), folder)
        write(f"twice-{engine}-{here}-{number}", taught_by("dropout", engine), folder)


def write_refusals(here: int, number: int, folder: Path) -> None:
    """What too many processes are told, and checkpoints that cannot have parts."""
    for engine in ENGINES:
        try:
            if engine == "ddp":
                taught_by("plain", engine, batch_size=here - 1)
            else:
                taught_by("plain", engine, Kept(folder / "kept"))
        except SpecError as error:
            (folder / f"refused-{engine}-{here}-{number}.txt").write_text(str(error))


def main(number: int, folder: Path) -> None:
    torch_engine._SPLIT_AT_LEAST = 0  # the models here are tiny
    for here in (2, COUNT, 1):
        if number >= here:
            continue
        if here == 1:
            work(here, number, folder)
            continue
        with joined(number, here, meeting=(folder / f"meeting-{here}").as_uri(), seconds=300):
            work(here, number, folder)
            write_refusals(here, number, folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), Path(sys.argv[2]))
    os._exit(0)
