"""Workloads for the tests of the data step: sound data with one flaw at a time, and one with two inputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from tasks.running.splits import Columns

ROWS = {"train": 60, "calibration": 20, "validation": 30, "test": 30}


def sound(seed: int = 0) -> dict[str, Columns]:
    """Four splits of 4 x 4 images in [0, 1] with three classes, no row twice."""
    random = np.random.default_rng(seed)
    return {
        name: {"image": random.random((rows, 1, 4, 4)).astype(np.float32), "target": np.arange(rows) % 3}
        for name, rows in ROWS.items()
    }


class Flawed:
    """Three-class images with the flaws named, joined by ``+``; they are the functions below."""

    def __init__(self, flaw: str = "none") -> None:
        self.flaw = flaw

    def model(self, role: str) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    def splits(self) -> dict[str, Columns]:
        splits = sound()
        for flaw in self.flaw.split("+"):
            globals()[f"flaw_{flaw}"](splits)
        return splits

    def labels(self) -> list[str]:
        return ["<b>ant</b>", "bee", "cat"]


class InThreeParts(Flawed):
    """The same rows in three partitions."""

    def partitions(self, folder: Path) -> Iterator[dict[str, Columns]]:
        assert list(folder.iterdir()) == []
        splits = self.splits()
        for part in range(3):
            yield {
                name: {column: np.array_split(values, 3)[part] for column, values in columns.items()}
                for name, columns in splits.items()
            }


def flaw_none(splits: dict[str, Columns]) -> None:
    """Nothing is wrong."""


def flaw_nan(splits: dict[str, Columns]) -> None:
    splits["train"]["image"][5, 0, 1, 1] = np.nan
    splits["test"]["image"][7, 0, 0, 0] = np.inf


def flaw_shape(splits: dict[str, Columns]) -> None:
    splits["validation"]["image"] = splits["validation"]["image"][:, :, :3]


def flaw_ragged(splits: dict[str, Columns]) -> None:
    rows = list(splits["train"]["image"])
    rows[3] = rows[3][:, :2]
    splits["train"]["image"] = rows  # type: ignore[assignment]


def flaw_text(splits: dict[str, Columns]) -> None:
    splits["test"]["name"] = np.array(["a"] * ROWS["test"])


def flaw_column(splits: dict[str, Columns]) -> None:
    splits["test"]["extra"] = np.zeros(ROWS["test"], dtype=np.float32)


def flaw_leak(splits: dict[str, Columns]) -> None:
    splits["test"]["image"][[3, 11]] = splits["train"]["image"][[17, 20]]


def flaw_duplicate(splits: dict[str, Columns]) -> None:
    splits["train"]["image"][[9, 12]] = splits["train"]["image"][0]


def flaw_conflict(splits: dict[str, Columns]) -> None:
    splits["train"]["image"][1] = splits["train"]["image"][0]


def flaw_target(splits: dict[str, Columns]) -> None:
    splits["calibration"]["target"][4] = 7


def flaw_missing_class(splits: dict[str, Columns]) -> None:
    splits["test"]["target"][:] = np.arange(ROWS["test"]) % 2


def flaw_balance(splits: dict[str, Columns]) -> None:
    splits["train"]["target"][:] = 0
    splits["train"]["target"][:2] = [1, 2]


def flaw_few(splits: dict[str, Columns]) -> None:
    splits["test"] = {name: values[:4] for name, values in splits["test"].items()}


def flaw_bright(splits: dict[str, Columns]) -> None:
    splits["test"]["image"] = splits["test"]["image"].astype(np.float32) * 3


def flaw_no_target(splits: dict[str, Columns]) -> None:
    del splits["test"]["target"]


def flaw_no_split(splits: dict[str, Columns]) -> None:
    del splits["calibration"]


class TwoInputs:
    """Regression on two inputs of different shape, with a frame of its own."""

    def __init__(self, frame_rows: int | None = None) -> None:
        self.frame_rows = frame_rows

    def model(self, role: str, width: int = 8) -> nn.Module:
        return _Sum(width)

    def splits(self) -> dict[str, Columns]:
        random = np.random.default_rng(3)
        made: dict[str, Columns] = {}
        for name, rows in ROWS.items():
            left, right = random.normal(size=(rows, 4)), random.normal(size=(rows, 2, 3))
            made[name] = {"left": left, "right": right, "target": left.sum(axis=1) + right.mean(axis=(1, 2))}
        return made

    def frame(self, split: Columns) -> pd.DataFrame:
        return pd.DataFrame({"left sum": split["left"].sum(axis=1)}).head(self.frame_rows or len(split["target"]))


class _Sum(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.left = nn.Linear(4, width)
        self.right = nn.Linear(6, width)
        self.head = nn.Linear(width, 1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        hidden = torch.relu(self.left(left) + self.right(right.flatten(1)))
        answer: Tensor = self.head(hidden)
        return answer
