"""The ResNet for small images: three stages of residual blocks with 16, 32 and 64 channels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tasks.workloads.architectures import repeated, scaled

_STAGES = (16, 32, 64)
_BLOCKS = 3


class ResNet20(nn.Module):
    """The CIFAR ResNet of 20 layers, 0.27 M parameters at 3x32x32 and 10 classes.

    Channels times ``width``, the 3 blocks of each stage times ``depth`` (at least one): 6 n + 2 layers. ``stride`` is
    that of the first convolution: with 2 everything sees half the resolution, for a quarter of the computing (one of
    the three ways to scale a network, Tan and Le 2019, arXiv:1905.11946). ``shape`` is (channels, height, width) of
    the images, 1x1 and up. Takes ``image`` [N, *shape], floating point and scaled to about 0 to 1, and answers logits
    [N, ``classes``].

    He, Zhang, Ren, Sun 2016, "Deep residual learning" (arXiv:1512.03385), section 4.2. Where a stage begins narrower
    and larger than it ends, the shortcut is a 1x1 convolution (their option B): padding with zeros (option A) would tie
    the channels of neighbouring stages by their order, which pruning cannot follow.
    """

    def __init__(
        self, shape: tuple[int, int, int], classes: int, width: float = 1.0, depth: float = 1.0, stride: int = 1
    ) -> None:
        super().__init__()
        channels = scaled(_STAGES[0], width)
        self.stem = nn.Conv2d(shape[0], channels, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.stages = nn.ModuleList()
        for number, units in enumerate(_STAGES):
            blocks = nn.Sequential()
            for first in [True] + [False] * (repeated(_BLOCKS, depth) - 1):
                blocks.append(ResidualBlock(channels, scaled(units, width), stride=2 if first and number else 1))
                channels = scaled(units, width)
            self.stages.append(blocks)
        self.head = nn.Linear(channels, classes)

    def forward(self, image: Tensor) -> Tensor:
        hidden = self._begin(image)
        for stage in self.stages:
            hidden = stage(hidden)
        return self._end(hidden)

    def blocks(self) -> list[Callable[..., Tensor]]:
        """What it is computed by, one after the other."""
        return [self._begin, *(block for stage in self.stages for block in stage.children()), self._end]

    def _begin(self, image: Tensor) -> Tensor:
        return torch.relu(self.norm(self.stem(image)))

    def _end(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(hidden.mean(dim=(2, 3)))
        return logits


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, added to their input."""

    def __init__(self, channels: int, units: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, units, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(units)
        self.conv2 = nn.Conv2d(units, units, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(units)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != units:
            conv = nn.Conv2d(channels, units, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(units))

    def forward(self, image: Tensor) -> Tensor:
        hidden = torch.relu(self.norm1(self.conv1(image)))
        return torch.relu(self.norm2(self.conv2(hidden)) + self.shortcut(image))
