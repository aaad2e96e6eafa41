"""The images of both vision rows: printed characters in grey, drawn as for the other rows of the proof."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.nn import functional

from tasks.running.splits import Columns
from tasks.workloads.workload import Inputs

sys.path.append(str(Path(__file__).parent.parent / "glyphs"))

from glyph_images import CLASSES, grey_images

LABELS = tuple(CLASSES)
SIZE = 28
ROWS = {"train": 16_000, "calibration": 1_000, "validation": 10_000, "test": 10_000}
"""Half a point of accuracy is proven on some 10 000 samples where one answer in 25 changes."""


class GreyImages:
    """One input ``image``, raw pixels [N, 1, 28, 28] (UINT8), and everything of a workload but its network.

    Args:
        rows: rows by split, where fewer are wanted than the benchmark's.
    """

    def __init__(self, rows: dict[str, int] | None = None) -> None:
        self.rows = {**ROWS, **(rows or {})}

    def splits(self) -> dict[str, Columns]:
        made: dict[str, Columns] = {}
        for number, (split, rows) in enumerate(self.rows.items()):
            images, labels = grey_images(rows, 200 + number)
            made[split] = {"image": images, "target": labels}
        return made

    def augment(self, inputs: Inputs, generator: torch.Generator) -> Inputs:
        """Each image turned (0.1 radians), scaled (8 %) and shifted (1.4 pixels)."""
        image = inputs["image"]
        n = len(image)
        draws = torch.randn(4, n, generator=generator) * 0.1
        angle, scale, across, down = draws[0], 1 + 0.8 * draws[1], draws[2], draws[3]  # 1 is half the image
        rows = (scale * angle.cos(), -angle.sin(), across, angle.sin(), scale * angle.cos(), down)
        grid = functional.affine_grid(torch.stack(rows, 1).reshape(-1, 2, 3), list(image.shape), align_corners=False)
        moved = functional.grid_sample(image.float(), grid, padding_mode="reflection", align_corners=False)
        return {"image": moved.round().to(image.dtype)}

    def preprocess(self, inputs: Inputs) -> Inputs:
        """Each image with a mean of 0 and a deviation of 1: ink is only a little darker or lighter than its ground."""
        image = inputs["image"].float() / 255
        middle = image.mean((1, 2, 3), keepdim=True)
        spread = (image - middle).square().mean((1, 2, 3), keepdim=True).sqrt()
        return {"image": (image - middle) / (spread + 0.01)}

    def labels(self) -> list[str]:
        return list(LABELS)
