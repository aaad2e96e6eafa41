"""The images of both vision rows: printed characters, white on black, in the faces of the other rows of the proof.

Plainer than those (no neighbours, no bar, little noise), so that a teacher that begins from nothing learns them in
minutes: with the others' images a ConvNeXt answers a third wrong after six.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tasks.running.splits import Columns
from tasks.workloads.workload import Inputs

sys.path.append(str(Path(__file__).parent.parent / "glyphs"))

from glyph_images import CLASSES, FACES, masks, placed

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
            images, labels = _drawn(rows, 200 + number)
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
        return {"image": inputs["image"].float() / 64 - 1}

    def labels(self) -> list[str]:
        return list(LABELS)


@cache
def _drawn(rows: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """``rows`` images, [rows, 1, 28, 28], and their classes, [rows]; each character turned, sheared, scaled, moved."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand((rows, *shape), generator=generator)

    labels = torch.randint(len(LABELS), (rows,), generator=generator)
    faces = torch.randint(len(FACES), (rows,), generator=generator)
    ink = placed(
        masks(FACES)[faces, labels],
        turn=uniform(-0.25, 0.25),
        shear=uniform(-0.2, 0.2),
        scale=uniform(1.2, 1.7),
        shift=uniform(-0.1, 0.1, 2),
        size=SIZE,
    )
    image = ink * uniform(0.5, 1, 1, 1) + 0.1 * torch.randn(ink.shape, generator=generator)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)[:, None].numpy(), labels.numpy()
