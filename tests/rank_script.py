"""Trains in processes that share it, for test_micro_shards: ``rank_script.py NUMBER COUNT FOLDER``, or ``torchrun ...
rank_script.py torchrun FOLDER``.

Each case is trained by two of the processes, by all of them, and by one; each writes what it had.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from model_registry.manifest import hash_bytes
from tasks.running.errors import RanksDisagree
from tasks.running.ranks import Ranks, joined
from tasks.running.splits import Columns
from tasks.torch_models.fit import Fitted, fit
from tasks.torch_models.fit_checkpoint import pack
from tasks.torch_models.fit_rows import predict
from tasks.torch_models.objective import TrainingBatch
from tasks.torch_models.torch_variant import build
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData
from tasks.torch_models.views import Views

if sys.argv[0].endswith("rank_script.py"):
    sys.path.insert(0, str(Path(__file__).parent))
from taught_workloads import taught

SETTINGS = Training(epochs=3, batch_size=34, learning_rate=5e-3, shards=8)
"""Six batches of 33 or 34 rows: shards of four or five."""


@dataclass
class Kept:
    """Checkpoints in a file that the processes share."""

    file: Path
    until: int = 0

    def save(self, epoch: int, make: Callable[[], bytes], *, last: bool) -> None:
        if epoch <= (self.until or epoch):
            self.file.write_bytes(make())

    def load(self) -> bytes | None:
        return self.file.read_bytes() if self.file.exists() else None


class Scaled(nn.Module):
    """The loss of answers times a number that is learned along."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss, self.factor = loss, nn.Parameter(torch.ones(()))

    def forward(self, outputs: Tensor, batch: TrainingBatch) -> Tensor:
        return self.loss(outputs * self.factor, batch.targets) + 0.01 * (self.factor - 2) ** 2


class Half(nn.Module):
    """One of its two layers is used by rows of small numbers alone, so by no shard at times; ``seen`` counts."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.never = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3)
        self.register_buffer("constant", torch.full((3,), 1 / 3))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            self.get_buffer("seen").add_(1)
        answer: Tensor = self.one(features) + self.get_buffer("constant")
        return answer + self.two(features) if features.mean() > 0.3 else answer


CASES = ("dropout", "batchnorm", "augmented", "views", "objective", "unused", "sgd", "regression", "blocks")


def from_disk(columns: Columns, folder: Path) -> Columns:
    """The same columns, mapped from files."""
    folder.mkdir(parents=True)
    for name, values in columns.items():
        np.save(folder / f"{name}.npy", values)
    return {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="c")) for name in columns}


def trained(
    case: str, checkpoints: Kept | None = None, *, seed: int = 0, mapped: Path | None = None, pipelined: bool = False
) -> tuple[nn.Module, Fitted]:
    names = {"dropout": "Blobs", "batchnorm": "Squares", "augmented": "NoisyBlobs", "views": "NoisyBlobs"}
    name = names.get(case, {"regression": "Sums", "blocks": "MovedSquares"}.get(case, "Blobs"))
    workload = taught(name, **({"dropout": 0.3} if case in ("dropout", "sgd") else {}))
    splits = workload.splits()
    if mapped is not None:
        splits = {name: from_disk(splits[name], mapped / name) for name in ("train", "validation")}
    data = TrainingData(workload, splits["train"], splits["validation"])
    torch.manual_seed(0)
    model = Half() if case == "unused" else build(workload, "teacher", {}, seed=seed)
    settings = replace(SETTINGS, optimizer="sgd" if case == "sgd" else "adamw", pipelined=pipelined)
    objective = Scaled(workload.loss) if case == "objective" else None
    views = Views(2, seed=0) if case == "views" else None
    fitted = fit(
        model, data, settings, objective=objective, views=views, seed=seed, device="cpu", checkpoints=checkpoints
    )
    return model, fitted


def digest(model: nn.Module, fitted: Fitted) -> str:
    return hash_bytes(pack({"model": dict(model.state_dict()), "history": fitted.history}))


def work(here: int, number: int, folder: Path) -> dict[str, str]:
    """All that is trained by this number of processes."""
    found = {case: digest(*trained(case)) for case in CASES}
    kept = Kept(folder / f"half-{here}-{number}")
    if here == 2:  # it is killed after its first epoch, and the others go on from there
        trained("dropout", Kept(folder / "of-two", until=1))
    else:
        kept.file.write_bytes((folder / "of-two").read_bytes())
    model, fitted = trained("dropout", kept)
    assert fitted.resumed_at == (here != 2)
    found["dropout, resumed"] = digest(model, fitted)
    piped = Kept(folder / f"piped-{here}")  # one for all of them: each has a part of what it holds
    if here == 2:
        trained("blocks", Kept(folder / "piped", until=1), pipelined=True)
    if number == 0:
        piped.file.write_bytes((folder / "piped").read_bytes())
    Ranks.current().of_first(torch.zeros(1))  # until it is there
    model, fitted = trained("blocks", piped, pipelined=True)
    assert fitted.resumed_at == 1
    found["blocks, resumed"] = digest(model, fitted)
    found["blocks, pipelined"] = digest(*trained("blocks", pipelined=True))
    found["objective, pipelined"] = digest(*trained("objective", pipelined=True))
    found["dropout, pipelined"] = digest(*trained("dropout", pipelined=True))
    model, fitted = trained("batchnorm", mapped=folder / f"mapped-{here}-{number}")
    found["batchnorm, mapped"] = digest(model, fitted)
    workload = taught("Squares")
    columns = from_disk(workload.splits()["train"], folder / f"asked-{here}-{number}")
    found["answers"] = hash_bytes(predict(model, workload=workload, columns=columns, device="cpu").tobytes())
    torch.set_num_threads(2)
    found["batchnorm, two threads"] = digest(*trained("batchnorm"))
    torch.set_num_threads(1)
    return found


def main(number: int, count: int, folder: Path) -> None:
    for here in (2, count, 1):
        if number >= here:
            continue
        if here == 1:
            found = work(here, number, folder)
        else:
            with joined(number, here, meeting=(folder / f"meeting-{here}").as_uri(), seconds=300):
                assert Ranks.current() == Ranks(number, here)
                found = work(here, number, folder)
                try:
                    trained("dropout", seed=number)
                except RanksDisagree as error:
                    found["disagreed"] = str(error)
        (folder / f"found-{here}-{number}.json").write_text(json.dumps(found))


def by_torchrun(folder: Path) -> None:
    """A user's own script: torchrun has said who this is. It trains twice, and once more in a group of its own."""
    found = [digest(*trained("dropout")), digest(*trained("batchnorm"))]
    assert not dist.is_initialized()
    dist.init_process_group("gloo")
    found.append(digest(*trained("dropout")))
    (folder / f"torchrun-{dist.get_rank()}.txt").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "torchrun":
        by_torchrun(Path(sys.argv[2]))
        os._exit(0)
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    os._exit(0)
