"""Small workloads that can be trained in a second, and their data in a store."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model_registry.store import Store
from tasks.running.splits import SPLITS, Columns, ColumnSpec, DataRef, MetricRef, SplitRef
from tasks.running.stage import Job, WorkloadRef
from tasks.workloads.architectures import ImageClassifier, SimpleNet
from tasks.workloads.workload import SQUARED_ERROR, Metric, Workload, load_workload

ROWS = {"train": 200, "calibration": 20, "validation": 100, "test": 50}


class Blobs:
    """Three classes of points in 4 dimensions, a little overlapping."""

    def __init__(self, dropout: float = 0.0) -> None:
        self.dropout = dropout

    def model(self, role: str, width: float = 1.0) -> nn.Module:
        net = SimpleNet(shape=(4,), outputs=3, width=width)
        return Dropped(net, self.dropout) if self.dropout else net

    def splits(self) -> dict[str, Columns]:
        random = np.random.default_rng(0)
        centres = random.normal(0, 2, (3, 4))
        made: dict[str, Columns] = {}
        for name, rows in ROWS.items():
            target = np.arange(rows) % 3
            points = centres[target] + random.normal(0, 1.2, (rows, 4))
            made[name] = {"features": points.astype(np.float32), "target": target}
        return made


class NoisyBlobs(Blobs):
    """The same points, moved a little each time they are seen."""

    def augment(self, inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        return {"features": inputs["features"] + 0.1 * torch.randn(inputs["features"].shape, generator=generator)}


class Dropped(nn.Module):
    """A network behind dropout: its training depends on the global generator."""

    def __init__(self, net: nn.Module, share: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(share)
        self.net = net

    def forward(self, features: Tensor) -> Tensor:
        answer: Tensor = self.net(features=self.drop(features))
        return answer


class Squares:
    """Images of 8 x 8 pixels, 0 to 16, in two classes by where the bright square is."""

    def model(self, role: str, width: float = 1.0) -> nn.Module:
        return ImageClassifier(shape=(1, 8, 8), classes=2, width=width)

    def splits(self) -> dict[str, Columns]:
        random = np.random.default_rng(0)
        made: dict[str, Columns] = {}
        for name, rows in ROWS.items():
            target = np.arange(rows) % 2
            image = random.random((rows, 1, 8, 8)) * 8
            for row, side in enumerate(target):
                image[row, 0, 2:5, 4 * side + 1 : 4 * side + 3] += 8
            made[name] = {"image": image.astype(np.float32), "target": target}
        return made

    def preprocess(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"image": inputs["image"] / 16}

    def labels(self) -> list[str]:
        return ["left", "right"]


class InBlocks(nn.Module):
    """Five blocks: BatchNorm, one that changes what it gets, dropout, a weight that a function takes itself, chance of
    NumPy's, and layouts that a convolution likes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.Dropout(0.2))
        self.dense, self.gain, self.head = nn.Linear(12 * 16, 16), nn.Parameter(torch.ones(())), nn.Linear(16, 2)

    def forward(self, image: Tensor) -> Tensor:
        answer: Tensor = self.head(self._third(torch.relu_(self.second(self._first(image)))))
        return answer

    def blocks(self) -> list[Any]:
        return [self._first, self.second, torch.relu_, self._third, self.head]

    def _first(self, image: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(image)))

    def _third(self, hidden: Tensor) -> Tensor:
        chance = float(np.random.random()) if self.training else 0.5
        return torch.tanh(self.dense(hidden.flatten(1)) * self.gain) * (0.9 + 0.2 * chance)


class MovedSquares(Squares):
    """The same images, a little brighter or darker each time, for a network in blocks."""

    def model(self, role: str, width: float = 1.0) -> nn.Module:
        return InBlocks()

    def augment(self, inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        return {"image": inputs["image"] * (1 + 0.1 * torch.randn(len(inputs["image"]), 1, 1, 1, generator=generator))}


class Sums:
    """Regression on two inputs: a weighted sum of a vector, times a number. Lower is better."""

    def model(self, role: str, width: float = 1.0) -> nn.Module:
        return SimpleNet(shape=(4,), outputs=1, width=width)

    def splits(self) -> dict[str, Columns]:
        random = np.random.default_rng(0)
        made: dict[str, Columns] = {}
        for name, rows in ROWS.items():
            vector = random.normal(0, 1, (rows, 3)).astype(np.float32)
            factor = random.normal(1, 0.3, rows).astype(np.float32)
            made[name] = {"vector": vector, "factor": factor, "target": (vector @ [1.0, -2.0, 0.5] * factor)[:, None]}
            made[name]["target"] = made[name]["target"].astype(np.float32)
        return made

    def metric(self) -> Metric:
        return SQUARED_ERROR


def taught(name: str, **arguments: Any) -> Workload:
    """One of the classes above, loaded as the pipeline loads it."""
    return load_workload(reference(name, **arguments))


def reference(name: str, **arguments: Any) -> WorkloadRef:
    """Where the class is."""
    return WorkloadRef(path=f"taught_workloads:{name}", arguments=arguments, folder=str(Path(__file__).parent))


def put_data(store: Store, workload: Workload) -> DataRef:
    """The workload's splits in the store, as the data step leaves them."""
    splits = workload.splits()
    refs = []
    for name in SPLITS:
        stream = io.BytesIO()
        np.savez(stream, **splits[name])  # type: ignore[arg-type]
        file = store.publish_bytes(stream.getvalue(), f"{name}.npz")
        refs.append(SplitRef(name=name, file=file, rows=len(splits[name]["target"])))
    train = splits["train"]
    whole = np.issubdtype(train["target"].dtype, np.integer)
    metric = workload.metric(train["target"])
    return DataRef(
        fingerprint="f",
        splits=tuple(refs),
        columns={n: ColumnSpec(dtype=v.dtype.name, shape=v.shape[1:]) for n, v in train.items()},
        task="classes" if whole else "regression",
        metric=MetricRef(name=metric.name, better=metric.better, builtin=True),
        labels=workload.labels(),
    )


def job_for(store: Store, ref: WorkloadRef, *, seed: int = 0) -> Job:
    """A job on the CPU."""
    return Job(run_id="r1", model="m", store=store.uri, workload=ref, seed=seed, device="cpu")
