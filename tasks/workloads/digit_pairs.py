"""A model of two inputs: which of two handwritten digits is the larger number?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from tasks.running.splits import TARGET, Columns
from tasks.workloads.architectures import scaled
from tasks.workloads.digits import WHITE, Digits
from tasks.workloads.workload import Inputs

_PAIRS = {"train": 6000, "calibration": 500, "validation": 1500, "test": 2000}


class DigitPairs:
    """Two inputs, ``left`` and ``right``, FP32 [N, 1, 8, 8], raw pixels 0 to 16; two classes.

    Pairs are drawn inside each split of :class:`Digits`, so that no image is in two splits; the digits differ.

    Args:
        share: of the pairs, 6 000 to train with and 2 000 to test on; less for quick runs.
        seed: of the draw.
    """

    def __init__(self, share: float = 1.0, seed: int = 0) -> None:
        self.share = share
        self.seed = seed

    def splits(self) -> dict[str, Columns]:
        """``left``, ``right`` and ``target`` (0: the left digit is larger, 1: the right one) of each split."""
        random = np.random.default_rng(self.seed)
        return {name: self._pairs(digits, _PAIRS[name], random) for name, digits in Digits().splits().items()}

    def model(self, role: str, width: float = 1.0) -> nn.Module:
        """A :class:`PairNet`; ``width`` scales its channels."""
        return PairNet(width)

    def preprocess(self, inputs: Inputs) -> Inputs:
        return {name: image / WHITE for name, image in inputs.items()}

    def labels(self) -> list[str]:
        return ["left", "right"]

    def _pairs(self, digits: Columns, pairs: int, random: np.random.Generator) -> Columns:
        count, image, digit = round(pairs * self.share), digits["image"], digits[TARGET].astype(np.int64)
        left, right = divmod(random.choice(len(digit) ** 2, 2 * count, replace=False), len(digit))  # no pair twice
        wanted = np.flatnonzero(digit[left] != digit[right])[:count]  # nine in ten differ
        left, right = left[wanted], right[wanted]
        return {"left": image[left], "right": image[right], TARGET: (digit[right] > digit[left]).astype(np.int64)}


class PairNet(nn.Module):
    """A convolution and a dense layer for each of two images [N, 1, 8, 8], which meet in a dense layer: logits [N, 2].

    The arguments of ``forward`` have the names of the columns.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        channels, units = scaled(32, width), scaled(64, width)
        self.left = _encoder(channels, units)
        self.right = _encoder(channels, units)
        self.dense = nn.Linear(2 * units, units)
        self.head = nn.Linear(units, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        both = torch.cat([self.left(left), self.right(right)], dim=1)
        logits: Tensor = self.head(torch.relu(self.dense(both)))
        return logits


def _encoder(channels: int, units: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * channels, units),
        nn.ReLU(),
    )
