"""A MobileNetV2 for small images: inverted residual blocks around depthwise convolutions."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from tasks.workloads.architectures import repeated, scaled

_STEM, _LAST = 32, 512
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 3, 2), (6, 96, 3, 1))
"""Expansion, channels, blocks, stride of the first block."""


class MobileNetClassifier(nn.Module):
    """A MobileNetV2 of 0.55 M parameters at 3x32x32: stem 32, stages of 16 to 96 channels, 512 before the head.

    Channels times ``width``, blocks per stage times ``depth`` (at least one). Images are halved three times where the
    original halves five times, for it was made for 224x224. ``shape`` is (channels, height, width) of the images, 1x1
    and up. Takes ``image`` [N, *shape], floating point and scaled to about 0 to 1, answers logits [N, ``classes``].

    Sandler, Howard, Zhu, Zhmoginov, Chen 2018, "MobileNetV2: inverted residuals and linear bottlenecks"
    (arXiv:1801.04381), table 2.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: float = 1.0, depth: float = 1.0) -> None:
        super().__init__()
        channels = scaled(_STEM, width)
        self.stem = NormedConv(shape[0], channels, 3)
        self.stages = nn.ModuleList()
        for expansion, units, blocks, stride in _STAGES:
            stage = nn.Sequential()
            for number in range(repeated(blocks, depth)):
                outputs = scaled(units, width)
                stage.append(InvertedResidual(channels, outputs, expansion, stride=1 if number else stride))
                channels = outputs
            self.stages.append(stage)
        self.last = NormedConv(channels, scaled(_LAST, width), 1)
        self.head = nn.Linear(scaled(_LAST, width), classes)

    def forward(self, image: Tensor) -> Tensor:
        hidden = self._begin(image)
        for stage in self.stages:
            hidden = stage(hidden)
        return self._end(hidden)

    def blocks(self) -> list[Callable[..., Tensor]]:
        """What it is computed by, one after the other."""
        return [self._begin, *(block for stage in self.stages for block in stage.children()), self._end]

    def _begin(self, image: Tensor) -> Tensor:
        return functional.relu6(self.stem(image))

    def _end(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(functional.relu6(self.last(hidden)).mean(dim=(2, 3)))
        return logits


class InvertedResidual(nn.Module):
    """Widened by a 1x1 convolution, filtered channel by channel, narrowed without a nonlinearity; added to its input
    where that has the same shape."""

    def __init__(self, channels: int, units: int, expansion: int, *, stride: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.widen = NormedConv(channels, hidden, 1) if expansion != 1 else None
        self.depthwise = NormedConv(hidden, hidden, 3, stride=stride, groups=hidden)
        self.narrow = NormedConv(hidden, units, 1)
        self.adds = stride == 1 and channels == units

    def forward(self, image: Tensor) -> Tensor:
        hidden = image if self.widen is None else functional.relu6(self.widen(image))
        answer: Tensor = self.narrow(functional.relu6(self.depthwise(hidden)))
        return image + answer if self.adds else answer


class NormedConv(nn.Module):
    """A convolution that keeps the size (but for its stride) and BatchNorm."""

    def __init__(self, channels: int, units: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        padding = kernel // 2
        self.conv = nn.Conv2d(channels, units, kernel, stride=stride, padding=padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(units)

    def forward(self, image: Tensor) -> Tensor:
        answer: Tensor = self.norm(self.conv(image))
        return answer
