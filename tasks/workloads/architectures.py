"""The small built-in networks, sized by the data: an MLP for flat and tabular input, CNNs of two layers for images."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

_HIDDEN = (64, 32)
_CONV = (32, 64)
_DENSE = 128
_STRIDED = (16, 16)
_SHALLOW = (16, 32)
_PATCH = 4
_GRID = 8
"""Largest height and width that reach the CNN's dense layer; larger feature maps are averaged down to it or below."""


class SimpleNet(nn.Module):
    """Two hidden layers (64 and 32 units, times ``width``) with ReLU.

    Takes any inputs [N, ...] by name, floating point and standardised; each is flattened and all are joined in the
    order of their names: ``shape`` is the shape of one row of that, or of the one input. Answers [N, ``outputs``].
    """

    def __init__(self, shape: tuple[int, ...], outputs: int, width: float = 1.0) -> None:
        super().__init__()
        values = math.prod(shape)
        first, second = (scaled(units, width) for units in _HIDDEN)
        self.dense1 = nn.Linear(values, first)
        self.dense2 = nn.Linear(first, second)
        self.head = nn.Linear(second, outputs)

    def forward(self, **inputs: Tensor) -> Tensor:
        flat = [inputs[name].reshape(inputs[name].shape[0], -1) for name in sorted(inputs)]
        joined = flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)
        hidden = torch.relu(self.dense1(joined))
        answer: Tensor = self.head(torch.relu(self.dense2(hidden)))
        return answer


class ImageClassifier(nn.Module):
    """conv 32, pool, conv 64, pool, dense 128, dense classes; channels and units times ``width``.

    BatchNorm follows each convolution. ``shape`` is (channels, height, width) of the images, 1x1 and up. Takes
    ``image`` [N, *shape], floating point and scaled to about 0 to 1, and answers logits [N, ``classes``].
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: float = 1.0) -> None:
        super().__init__()
        channels, height, breadth = shape
        first, second = (scaled(units, width) for units in _CONV)
        dense = scaled(_DENSE, width)
        # The bias of a convolution before BatchNorm would be subtracted again.
        self.conv1 = nn.Conv2d(channels, first, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(second)
        self.pool1 = halving((height, breadth))
        height, breadth = height // self.pool1[0], breadth // self.pool1[1]
        self.pool2 = halving((height, breadth))
        height, breadth = height // self.pool2[0], breadth // self.pool2[1]
        # Fixed windows instead of adaptive pooling, which ONNX does not have.
        self.shrink = (math.ceil(height / _GRID), math.ceil(breadth / _GRID))
        height, breadth = height // self.shrink[0], breadth // self.shrink[1]
        self.dense = nn.Linear(second * height * breadth, dense)
        self.head = nn.Linear(dense, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self._end(self._second(self._first(image)))

    def blocks(self) -> list[Callable[..., Tensor]]:
        """What it is computed by, one after the other."""
        return [self._first, self._second, self._end]

    def _first(self, image: Tensor) -> Tensor:
        return functional.max_pool2d(torch.relu(self.norm1(self.conv1(image))), self.pool1)

    def _second(self, hidden: Tensor) -> Tensor:
        return functional.max_pool2d(torch.relu(self.norm2(self.conv2(hidden))), self.pool2)

    def _end(self, hidden: Tensor) -> Tensor:
        if self.shrink != (1, 1):
            hidden = functional.avg_pool2d(hidden, self.shrink)
        logits: Tensor = self.head(torch.relu(self.dense(hidden.flatten(1))))
        return logits


class StridedClassifier(nn.Module):
    """conv 16 and conv 16, each with stride 2, and a dense layer to the classes; channels times ``width``.

    A small student for small images: where a network takes microseconds, a pooling costs as much as a convolution, so
    the convolutions halve the image themselves (Springenberg et al. 2015, arXiv:1412.6806). BatchNorm follows each
    convolution. ``shape`` is (channels, height, width) of the images, 1x1 and up. Takes ``image`` [N, *shape], floating
    point and scaled to about 0 to 1, and answers logits [N, ``classes``].
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: float = 1.0) -> None:
        super().__init__()
        channels, height, breadth = shape
        first, second = (scaled(units, width) for units in _STRIDED)
        self.conv1 = nn.Conv2d(channels, first, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(second)
        height, breadth = math.ceil(height / 4), math.ceil(breadth / 4)
        self.shrink = (math.ceil(height / _GRID), math.ceil(breadth / _GRID))
        height, breadth = height // self.shrink[0], breadth // self.shrink[1]
        self.head = nn.Linear(second * height * breadth, classes)

    def forward(self, image: Tensor) -> Tensor:
        hidden = torch.relu(self.norm1(self.conv1(image)))
        hidden = torch.relu(self.norm2(self.conv2(hidden)))
        if self.shrink != (1, 1):
            hidden = functional.avg_pool2d(hidden, self.shrink)
        logits: Tensor = self.head(hidden.flatten(1))
        return logits


class ShallowClassifier(nn.Module):
    """conv 16 of 4 x 4 pixels with stride 2, dense 32 and a dense layer to the classes; channels and units times
    ``width``.

    The other small student: of two networks that take as long, the one with fewer layers may be the wider. BatchNorm
    follows the convolution. ``shape`` is (channels, height, width) of the images, 1x1 and up. Takes ``image``
    [N, *shape], floating point and scaled to about 0 to 1, and answers logits [N, ``classes``].
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: float = 1.0) -> None:
        super().__init__()
        channels, *size = shape
        first, dense = (scaled(units, width) for units in _SHALLOW)
        kernel = (min(_PATCH, size[0]), min(_PATCH, size[1]))
        self.conv = nn.Conv2d(channels, first, kernel, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(first)
        height, breadth = ((side - patch) // 2 + 1 for side, patch in zip(size, kernel, strict=True))
        self.shrink = (math.ceil(height / _GRID), math.ceil(breadth / _GRID))
        height, breadth = height // self.shrink[0], breadth // self.shrink[1]
        self.dense = nn.Linear(first * height * breadth, dense)
        self.head = nn.Linear(dense, classes)

    def forward(self, image: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.conv(image)))
        if self.shrink != (1, 1):
            hidden = functional.avg_pool2d(hidden, self.shrink)
        logits: Tensor = self.head(torch.relu(self.dense(hidden.flatten(1))))
        return logits


def scaled(units: int, width: float) -> int:
    """``units * width``, rounded, at least 2."""
    if not width > 0:
        raise ValueError(f"width {width} must be greater than 0: 1 is the full network, 0.5 half of its units")
    return max(2, round(units * width))


def repeated(layers: int, depth: float) -> int:
    """``layers * depth``, rounded half up, at least 1."""
    if not depth > 0:
        raise ValueError(f"depth {depth} must be greater than 0: 1 is the full network, 0.5 half of its layers")
    return max(1, math.floor(layers * depth + 0.5))


def halving(size: tuple[int, int]) -> tuple[int, int]:
    """The pooling window that halves the image where there is something to halve."""
    return (2 if size[0] > 1 else 1, 2 if size[1] > 1 else 1)
