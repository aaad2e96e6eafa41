"""The benchmark's workload: 55 000 images of printed characters in 40 classes, and three networks for them."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from glyph_images import CLASSES, SIZE, glyph_images
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from tasks.running.splits import Columns
from tasks.workloads.mobilenet import MobileNetClassifier
from tasks.workloads.resnet import ResNet20
from tasks.workloads.vgg import VggClassifier
from tasks.workloads.workload import Inputs

ROWS = {"train": 24_000, "calibration": 1_000, "validation": 10_000, "test": 20_000}
"""Half a point of accuracy is proven on some 10 000 samples where one answer in 25 changes, not on fewer."""
NETWORKS = {"vgg": VggClassifier, "resnet20": ResNet20, "mobilenet": MobileNetClassifier}


class Glyphs:
    """One input ``image``, raw pixels [N, 3, 32, 32] (UINT8); scaling is part of the model.

    Args:
        network: which of the three the teacher is.
        rows: rows by split, where fewer are wanted than the benchmark's.
        seed: of the drawing.
    """

    def __init__(
        self,
        network: Literal["vgg", "resnet20", "mobilenet"] = "vgg",
        rows: dict[str, int] | None = None,
        seed: int = 0,
    ) -> None:
        self.network, self.rows, self.seed = network, {**ROWS, **(rows or {})}, seed

    def splits(self) -> dict[str, Columns]:
        made: dict[str, Columns] = {}
        for number, (split, rows) in enumerate(self.rows.items()):
            images, labels = _drawn(rows, 10 * self.seed + number)
            made[split] = {"image": images, "target": labels}
        return made

    def model(self, role: str, width: float = 1.0, **scale: Any) -> nn.Module:
        """The network, its channels times ``width``; vgg and resnet20 also take ``depth``, resnet20 ``stride``."""
        network: nn.Module = NETWORKS[self.network](shape=(3, SIZE, SIZE), classes=len(CLASSES), width=width, **scale)
        return network

    def preprocess(self, inputs: Inputs) -> Inputs:
        return {"image": inputs["image"].to(torch.float32) / 64 - 2}

    def labels(self) -> list[str]:
        return list(CLASSES)


class MovedGlyphs(Glyphs):
    """The same, and students see each image shifted, turned, scaled, with its colours exchanged or turned over.

    A teacher that knows its 24 000 images by heart has little to tell about them.
    """

    def augment(self, inputs: Inputs, generator: torch.Generator) -> Inputs:
        """An affine map (0.1 radians, 8 %, 1.5 pixels) and an order of the channels for each; half become negatives."""
        image = inputs["image"]
        n = len(image)
        draws = torch.randn(4, n, generator=generator)
        angle, scale = draws[0] * 0.1, 1 + draws[1] * 0.08
        across, down = draws[2] * 0.1, draws[3] * 0.1  # 1 is half the image
        rows = (scale * angle.cos(), -angle.sin(), across, angle.sin(), scale * angle.cos(), down)
        grid = functional.affine_grid(torch.stack(rows, 1).reshape(-1, 2, 3), list(image.shape), align_corners=False)
        moved = functional.grid_sample(image.float(), grid, padding_mode="reflection", align_corners=False)
        order = torch.rand(n, 3, generator=generator).argsort(dim=1)
        moved = moved.gather(1, order[:, :, None, None].expand_as(moved))
        negative = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
        return {"image": torch.where(negative, 255 - moved, moved).round().to(image.dtype)}


@cache
def _drawn(rows: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    return glyph_images(rows, seed)
