"""Regression from two inputs, a picture and a table: neither of them tells the target alone."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

ROWS = {"train": 20_000, "calibration": 1_000, "validation": 12_000, "test": 20_000}
"""One percent of an error that is mostly noise takes some 10 000 rows to prove: see docs/searching.md."""
NOISE = 1.0
"""Variance of what no model can know; that of the rest is about as large."""
_SIZE = 24
_COLUMNS = 16


class BarsAndColumns:
    """Inputs ``image``, raw pixels [N, 1, 24, 24] (UINT8), and ``table`` [N, 16] (FP32); targets [N, 1] (FP32).

    Args:
        rows: rows by split, where fewer are wanted than the benchmark's.
    """

    def __init__(self, rows: dict[str, int] | None = None) -> None:
        self.rows = {**ROWS, **(rows or {})}

    def splits(self) -> dict[str, dict[str, NDArray[np.generic]]]:
        return {split: dict(_drawn(rows, number)) for number, (split, rows) in enumerate(self.rows.items())}

    def model(self, role: str) -> nn.Module:
        return TwoBranches(_COLUMNS)

    def preprocess(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"image": inputs["image"].float() / 64 - 1, "table": inputs["table"]}


class TwoBranches(nn.Module):
    """Four convolutions for the picture, two dense layers for the table, joined by two more: 0.23 M parameters."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.picture = nn.Sequential(
            _convolution(1, 32),
            _convolution(32, 32),
            nn.MaxPool2d(2),
            _convolution(32, 64),
            _convolution(64, 64),
            nn.MaxPool2d(3),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 128),
            nn.ReLU(),
        )
        self.columns = nn.Sequential(nn.Linear(columns, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.joined = nn.Sequential(nn.Linear(128 + 64, 128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        answer: Tensor = self.joined(torch.cat([self.picture(image), self.columns(table)], dim=1))
        return answer


def _convolution(channels: int, units: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, units, 3, padding=1, bias=False),
        nn.BatchNorm2d(units),
        nn.ReLU(),
    )


@cache
def _drawn(rows: int, seed: int) -> dict[str, NDArray[np.generic]]:
    """A bright bar of some angle, length and place on noise; the table says what its angle and length are worth."""
    random = np.random.default_rng([seed, 24])
    angle, half = random.uniform(0, np.pi, rows), random.uniform(3, 9, rows)
    centre = random.uniform(8, _SIZE - 8, (2, rows))
    across, down = np.meshgrid(np.arange(_SIZE), np.arange(_SIZE))
    x = across - centre[0][:, None, None]
    y = down - centre[1][:, None, None]
    cosine, sine = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    along, beside = x * cosine + y * sine, y * cosine - x * sine
    bar = (np.abs(along) < half[:, None, None]) & (np.abs(beside) < 1.6)
    brightness = random.uniform(90, 150, rows)[:, None, None]
    pixels = 50 + brightness * bar + 15 * random.standard_normal(bar.shape)
    table = random.standard_normal((rows, _COLUMNS))
    length = (half - 6) / np.sqrt(3)  # variance 1
    signal = table[:, 0] * np.sqrt(2) * np.sin(2 * angle) + length * np.tanh(table[:, 1] + table[:, 2])
    signal += np.abs(table[:, 3]) - 0.5 * table[:, 4] * table[:, 5] + 0.3 * table[:, 6]
    target = signal / 1.6 + np.sqrt(NOISE) * random.standard_normal(rows)
    return {
        "image": np.clip(pixels, 0, 255).astype(np.uint8)[:, None],
        "table": table.astype(np.float32),
        "target": target.astype(np.float32)[:, None],
    }
