"""Small networks of the three families that pruning has to get right: plain, residual and depthwise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FAMILIES = ("vgg", "resnet", "mobile")


class Basic(nn.Module):
    """A residual block of two convolutions; the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(hidden + self.shortcut(x))


class Inverted(nn.Module):
    """MobileNetV2's block: 1x1 out, depthwise, 1x1 back without ReLU, and a residual where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = inputs * expand
        self.residual = stride == 1 and inputs == outputs
        self.expand = nn.Sequential(nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6())
        self.depth = nn.Sequential(
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner), nn.ReLU6()
        )
        self.project = nn.Sequential(nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.project(self.depth(self.expand(x)))
        return x + hidden if self.residual else hidden


class Net(nn.Module):
    """A body of images [N, channels, 8, 8] and a linear head over its average (``vgg``: flattened)."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, image: Tensor) -> Tensor:
        answer: Tensor = self.head(self.body(image))
        return answer


def net(family: str, *, channels: int = 3, classes: int = 5, seed: int = 0) -> Net:
    """A fresh network with BatchNorm statistics that are not the initial ones."""
    torch.manual_seed(seed)
    if family == "vgg":
        body = nn.Sequential(*_conv(channels, 16), nn.MaxPool2d(2), *_conv(16, 32), *_conv(32, 32), nn.MaxPool2d(2))
        head: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(128, 24), nn.ReLU(), nn.Linear(24, classes))
    elif family == "resnet":
        body = nn.Sequential(*_conv(channels, 16), Basic(16, 16, 1), Basic(16, 32, 2), Basic(32, 32, 1))
        head = _average(32, classes)
    else:
        body = nn.Sequential(*_conv(channels, 8), Inverted(8, 16, 2, 3), Inverted(16, 16, 1, 3))
        head = _average(16, classes)
    made = Net(body, head)
    made.train()
    with torch.no_grad():
        for _ in range(20):
            made(torch.rand(16, channels, 8, 8))
    return made.eval()


def _conv(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


def _average(channels: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
