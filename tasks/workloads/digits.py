"""Handwritten digits of scikit-learn: 1 797 grey images of 8 x 8 pixels, values 0 to 16, ten classes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tasks.readers.splitting import split_columns
from tasks.running.splits import Columns
from tasks.workloads.workload import Inputs

WHITE = 16.0
# A test split of this size can prove that no more than two points are lost, even where five more images are wrong.
FRACTIONS = {"train": 0.44, "calibration": 0.06, "validation": 0.2, "test": 0.3}


class Digits:
    """A classifier of one input ``image``, FP32 [N, 1, 8, 8], raw pixels 0 to 16; scaling is part of the model.

    Args:
        rows: use only this number of images, for quick runs.
        seed: of the division into splits.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test set).
    """

    def __init__(self, rows: int | None = None, seed: int = 0) -> None:
        self.rows = rows
        self.seed = seed

    def splits(self) -> dict[str, Columns]:
        """791, 108, 359 and 539 images of train, calibration, validation and test, with all rows."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        image = digits.images.astype(np.float32)[: self.rows, None]
        target = digits.target.astype(np.int64)[: self.rows]
        return split_columns({"image": image, "target": target}, seed=self.seed, fractions=FRACTIONS)

    def model(
        self,
        role: str,
        width: float = 1.0,
        network: Literal["pooled", "strided", "shallow"] = "pooled",
        **scale: Any,
    ) -> nn.Module:
        """The ImageClassifier for teacher and student alike; ``width`` scales its channels.

        Args:
            network: ``pooled``, or for students that take microseconds ``strided`` (StridedClassifier) or ``shallow``
                (ShallowClassifier).
        """
        from tasks.workloads.architectures import ImageClassifier, ShallowClassifier, StridedClassifier

        networks = {"pooled": ImageClassifier, "strided": StridedClassifier, "shallow": ShallowClassifier}
        if network not in networks:
            raise ValueError(f"network {network!r} is not known: use {', '.join(networks)}")
        return networks[network](shape=(1, 8, 8), classes=10, width=width, **scale)

    def preprocess(self, inputs: Inputs) -> Inputs:
        return {"image": inputs["image"] / WHITE}

    def labels(self) -> list[str]:
        return [str(digit) for digit in range(10)]


class MovedDigits(Digits):
    """:class:`Digits`, each training image turned, scaled and shifted a little: 0.12 radians, 8 %, 0.4 pixels.

    Args:
        rows: use only this number of images, for quick runs.
        seed: of the division into splits.
    """

    def augment(self, inputs: Inputs, generator: torch.Generator) -> Inputs:
        """An affine map of its own for each image, drawn from normal distributions."""
        image = inputs["image"]
        draws = torch.randn(4, len(image), generator=generator).to(image.device)
        angle, scale = draws[0] * 0.12, 1 + draws[1] * 0.08
        across, down = draws[2] * 0.1, draws[3] * 0.1  # 1 is half the image
        rows = (scale * angle.cos(), -angle.sin(), across, angle.sin(), scale * angle.cos(), down)
        grid = functional.affine_grid(torch.stack(rows, 1).reshape(-1, 2, 3), list(image.shape), align_corners=False)
        return {"image": functional.grid_sample(image, grid, align_corners=False)}
