"""A VGG for small images: plain 3x3 convolutions in stages, each halved by pooling, and one dense layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.workloads.architectures import halving, repeated, scaled

_STAGES = ((64, 2), (128, 2), (128, 2), (192, 1))
"""Channels and convolutions between two poolings."""
_DENSE = 256
_GRID = 2
"""Largest height and width that reach the dense layer; larger feature maps are averaged down to it or below."""


class VggClassifier(nn.Module):
    """conv 64 64, pool, 128 128, pool, 128 128, pool, 192, dense 256, dense classes: 0.98 M parameters at 3x32x32.

    Channels and units times ``width``, convolutions per stage times ``depth`` (at least one). BatchNorm and ReLU follow
    each convolution; no dropout. ``shape`` is (channels, height, width) of the images, 1x1 and up. Takes ``image``
    [N, *shape], floating point and scaled to about 0 to 1, and answers logits [N, ``classes``].

    After Simonyan and Zisserman 2015 (arXiv:1409.1556), with the BatchNorm of Ioffe and Szegedy 2015.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: float = 1.0, depth: float = 1.0) -> None:
        super().__init__()
        channels, *size = shape
        height, breadth = size
        self.stages = nn.ModuleList()
        self.windows: list[tuple[int, int]] = []
        for units, convolutions in _STAGES:
            if len(self.stages) > 0:
                self.windows.append(halving((height, breadth)))
                height, breadth = height // self.windows[-1][0], breadth // self.windows[-1][1]
            blocks = nn.Sequential()
            for _ in range(repeated(convolutions, depth)):
                blocks.append(ConvBlock(channels, scaled(units, width)))
                channels = scaled(units, width)
            self.stages.append(blocks)
        # Fixed windows instead of adaptive pooling, which ONNX does not have.
        self.shrink = (math.ceil(height / _GRID), math.ceil(breadth / _GRID))
        height, breadth = height // self.shrink[0], breadth // self.shrink[1]
        self.dense = nn.Linear(channels * height * breadth, scaled(_DENSE, width))
        self.head = nn.Linear(scaled(_DENSE, width), classes)

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.stages[0](image)
        for stage, window in zip(list(self.stages)[1:], self.windows, strict=True):
            hidden = stage(functional.max_pool2d(hidden, window))
        return self._end(hidden)

    def blocks(self) -> list[Callable[..., Tensor]]:
        """What it is computed by, one after the other."""
        first, *others = self.stages
        made: list[Callable[..., Tensor]] = [*first.children()]
        for stage, window in zip(others, self.windows, strict=True):
            made += [partial(functional.max_pool2d, kernel_size=window), *stage.children()]
        return [*made, self._end]

    def _end(self, hidden: Tensor) -> Tensor:
        if self.shrink != (1, 1):
            hidden = functional.avg_pool2d(hidden, self.shrink)
        logits: Tensor = self.head(torch.relu(self.dense(hidden.flatten(1))))
        return logits


class ConvBlock(nn.Module):
    """A 3x3 convolution, BatchNorm, ReLU."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        # The bias of a convolution before BatchNorm would be subtracted again.
        self.conv = nn.Conv2d(channels, units, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(units)

    def forward(self, image: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(image)))
