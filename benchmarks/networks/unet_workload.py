"""A class for every pixel: coloured discs, squares and triangles that overlap on textured noise, and a U-Net."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

import winnow

ROWS = {"train": 3_000, "calibration": 300, "validation": 3_000, "test": 3_000}
"""A pupil's IoU differs from the teacher's by 16 points a picture: half a point is the bound of 3 000 of them."""
CLASSES = ("background", "disc", "square", "triangle")
_SIZE = 48
_MOST_SHAPES = 5


class ShapePixels:
    """One input ``image``, raw pixels [N, 3, 48, 48] (UINT8); targets [N, 48, 48] (UINT8), judged by IoU per picture.

    Args:
        rows: rows by split, where fewer are wanted than the benchmark's.
    """

    def __init__(self, rows: dict[str, int] | None = None) -> None:
        self.rows = {**ROWS, **(rows or {})}

    def splits(self) -> dict[str, dict[str, NDArray[np.generic]]]:
        drawn = {split: _drawn(rows, number) for number, (split, rows) in enumerate(self.rows.items())}
        return {split: {"image": images, "target": classes} for split, (images, classes) in drawn.items()}

    def model(self, role: str) -> nn.Module:
        return UNet(channels=3, classes=len(CLASSES))

    def preprocess(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"image": inputs["image"].float() / 64 - 2}

    def metric(self) -> winnow.Metric:
        return winnow.IOU

    def labels(self) -> list[str]:
        return list(CLASSES)


class UNet(nn.Module):
    """Three levels of 24, 48 and 96 channels, two convolutions each: 0.27 M parameters.

    After Ronneberger, Fischer and Brox 2015 (arXiv:1505.04597), with BatchNorm and padded convolutions.
    """

    def __init__(self, channels: int, classes: int, base: int = 24) -> None:
        super().__init__()
        self.first = _double(channels, base)
        self.second = _double(base, 2 * base)
        self.bottom = _double(2 * base, 4 * base)
        self.up_second = nn.ConvTranspose2d(4 * base, 2 * base, 2, stride=2)
        self.join_second = _double(4 * base, 2 * base)
        self.up_first = nn.ConvTranspose2d(2 * base, base, 2, stride=2)
        self.join_first = _double(2 * base, base)
        self.head = nn.Conv2d(base, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        fine = self.first(image)
        middle = self.second(functional.max_pool2d(fine, 2))
        coarse = self.bottom(functional.max_pool2d(middle, 2))
        middle = self.join_second(torch.cat([middle, self.up_second(coarse)], dim=1))
        fine = self.join_first(torch.cat([fine, self.up_first(middle)], dim=1))
        logits: Tensor = self.head(fine)
        return logits


def _double(channels: int, units: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, units, 3, padding=1, bias=False),
        nn.BatchNorm2d(units),
        nn.ReLU(),
        nn.Conv2d(units, units, 3, padding=1, bias=False),
        nn.BatchNorm2d(units),
        nn.ReLU(),
    )


@cache
def _drawn(rows: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pictures [rows, 3, 48, 48] and the class of each pixel [rows, 48, 48]."""
    random = np.random.default_rng([seed, 48])
    images = np.empty((rows, 3, _SIZE, _SIZE), np.uint8)
    classes = np.zeros((rows, _SIZE, _SIZE), np.uint8)
    for row in range(rows):
        picture = _texture(random)
        for _ in range(random.integers(2, _MOST_SHAPES + 1)):
            kind = int(random.integers(1, len(CLASSES)))
            inside = _shape(kind, random)
            shade = 1 + 0.15 * random.standard_normal((_SIZE, _SIZE))
            picture[:, inside] = random.uniform(30, 225, 3)[:, None] * shade[inside]
            classes[row][inside] = kind
        images[row] = np.clip(picture + 12 * random.standard_normal(picture.shape), 0, 255).astype(np.uint8)
    return images, classes


def _texture(random: np.random.Generator) -> NDArray[np.float64]:
    """Noise of three grains over a colour, [3, 48, 48]."""
    picture = np.broadcast_to(random.uniform(60, 190, 3)[:, None, None], (3, _SIZE, _SIZE)).copy()
    for grain in (4, 8, 16):
        coarse = random.standard_normal((3, _SIZE // grain, _SIZE // grain))
        picture += 12 * coarse.repeat(grain, axis=1).repeat(grain, axis=2)
    return picture


def _shape(kind: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """Where a disc (1), square (2) or triangle (3) of random place, size and angle lies, [48, 48]."""
    across, down = np.meshgrid(np.arange(_SIZE), np.arange(_SIZE))
    x, y = across - random.uniform(4, _SIZE - 4), down - random.uniform(4, _SIZE - 4)
    radius, angle = random.uniform(5, 12), random.uniform(0, 2 * np.pi)
    if kind == 1:
        return np.asarray(x**2 + y**2 < radius**2)
    sides = 4 if kind == 2 else 3
    turns = angle + 2 * np.pi * np.arange(sides) / sides
    reach = radius * np.cos(np.pi / sides)  # from the centre to a side, where corners lie on the circle
    reach *= 1.25 if kind == 2 else 1.4  # about the area of the disc
    far = np.stack([x * np.cos(turn) + y * np.sin(turn) for turn in turns]).max(axis=0)
    return np.asarray(far < reach)
