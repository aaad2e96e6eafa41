"""Which two gestures came, and in which order? Signals of six sensors, read by a temporal convolutional network."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.running.splits import Columns

ROWS = {"train": 12_000, "calibration": 500, "validation": 5_000, "test": 5_000}
GESTURES = ("circle", "shake", "tap")
SENSORS, STEPS, _LONG = 6, 96, 20


class Gestures:
    """One input ``signal`` [N, 6, steps], float32; any number of steps, 96 of them in the splits.

    Args:
        rows: rows by split, where fewer are wanted than the benchmark's.
    """

    def __init__(self, rows: dict[str, int] | None = None) -> None:
        self.rows = {**ROWS, **(rows or {})}

    def splits(self) -> dict[str, Columns]:
        made: dict[str, Columns] = {}
        for number, (split, rows) in enumerate(self.rows.items()):
            signals, labels = _recorded(rows, seed=number)
            made[split] = {"signal": signals, "target": labels}
        return made

    def model(self, role: str) -> nn.Module:
        """The same network whatever the role: nothing can be scaled from outside."""
        return TemporalConvNet(SENSORS, len(self.labels()))

    def dynamic_dims(self) -> dict[str, dict[int, str]]:
        return {"signal": {2: "steps"}}

    def labels(self) -> list[str]:
        return [f"{first}, then {second}" for first in GESTURES for second in GESTURES]


class TemporalConvNet(nn.Module):
    """Bai, Kolter and Koltun 2018 (arXiv:1803.01271): dilated causal residual blocks; the last step answers."""

    def __init__(self, sensors: int, classes: int, width: int = 64, levels: int = 6, kernel: int = 3) -> None:
        super().__init__()
        widths = [sensors] + [width] * levels
        self.blocks = nn.Sequential(
            *(TemporalBlock(widths[n], widths[n + 1], kernel, dilation=2**n) for n in range(levels))
        )
        self.head = nn.Linear(width, classes)

    def forward(self, signal: Tensor) -> Tensor:
        answer: Tensor = self.head(self.blocks(signal)[:, :, -1])
        return answer


class TemporalBlock(nn.Module):
    """Two causal convolutions of one dilation, and what came in added to them."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.reach = (kernel - 1) * dilation
        self.first = nn.Conv1d(inputs, outputs, kernel, dilation=dilation, bias=False)
        self.first_norm = nn.BatchNorm1d(outputs)
        self.second = nn.Conv1d(outputs, outputs, kernel, dilation=dilation, bias=False)
        self.second_norm = nn.BatchNorm1d(outputs)
        self.match = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first_norm(self.first(nn.functional.pad(x, (self.reach, 0)))))
        y = torch.relu(self.second_norm(self.second(nn.functional.pad(y, (self.reach, 0)))))
        return torch.relu(y + self.match(x))


@cache
def _recorded(rows: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Signals [rows, 6, 96] with two gestures far apart in noise and drift, and what they were."""
    random = np.random.default_rng(seed)
    steps = np.arange(STEPS)
    drift = random.normal(0, 0.6, (rows, SENSORS, 1)) * np.sin(
        steps * random.uniform(0.02, 0.15, (rows, SENSORS, 1)) + random.uniform(0, 6.3, (rows, SENSORS, 1))
    )
    signals = drift + random.normal(0, 0.5, (rows, SENSORS, STEPS))
    labels = random.integers(0, len(GESTURES) ** 2, rows)
    for row, label in enumerate(labels):
        first = int(random.integers(0, STEPS - 3 * _LONG))
        second = int(random.integers(first + 2 * _LONG, STEPS - _LONG + 1))
        for start, gesture in ((first, label // len(GESTURES)), (second, label % len(GESTURES))):
            signals[row, :, start : start + _LONG] += _gesture(int(gesture), random)
    return signals.astype(np.float32), labels.astype(np.int64)


def _gesture(number: int, random: np.random.Generator) -> Any:
    """[6, 20]: three axes of acceleration and three of rotation, at a pace and a strength of their own."""
    time = np.linspace(0, 1, _LONG) * random.uniform(0.8, 1.2)
    turn = 2 * np.pi * time
    around, zero = random.uniform(0, 2 * np.pi), np.zeros(_LONG)
    shapes = {
        "circle": [np.cos(turn + around), np.sin(turn + around), zero, zero, zero, np.sin(turn / 2)],
        "shake": [np.sin(3 * turn + around), zero, np.sin(turn / 2) * 0.5, zero, np.cos(3 * turn + around), zero],
        "tap": [zero, zero, np.exp(-(((time - 0.4) * 8) ** 2)) * 1.8, np.sin(3 * turn + around), zero, zero],
    }
    fade = np.sin(np.pi * np.linspace(0, 1, _LONG)) ** 0.5
    return np.stack(shapes[GESTURES[number]]) * fade * random.uniform(0.8, 1.6)
