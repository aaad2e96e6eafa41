"""Networks that can be cut and such that cannot, and a workload that gives them; none knows a stride or a depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tasks.running.splits import Columns
from tasks.running.stage import WorkloadRef
from tasks.workloads.mobilenet import MobileNetClassifier
from tasks.workloads.resnet import ResNet20
from tasks.workloads.vgg import VggClassifier
from tasks.workloads.workload import Workload, load_workload

SHAPE, CLASSES = (3, 16, 16), 4


class TinyViT(nn.Module):
    """Patches of 4x4, a table of places, torch's own encoder."""

    def __init__(self, blocks: int = 4, *, mask: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.places = nn.Parameter(torch.randn(1, 16, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=not mask)
        self.encoder = nn.TransformerEncoder(layer, blocks, enable_nested_tensor=False)
        self.mask = mask
        self.head = nn.Linear(16, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.places
        hidden = tokens.new_zeros(16, 16) if self.mask else None
        logits: Tensor = self.head(self.encoder(tokens, mask=hidden).mean(1))
        return logits


class TinyTcn(nn.Module):
    """A temporal convolutional network: its first convolution has a shortcut beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(3, 8, 3)
        self.match = nn.Conv1d(3, 8, 1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, sound: Tensor) -> Tensor:
        hidden = torch.relu(self.first(nn.functional.pad(sound, (2, 0))) + self.match(sound))
        logits: Tensor = self.head(hidden[:, :, -1])
        return logits


class NextBlock(nn.Module):
    """ConvNeXt's: depthwise, a norm over channels, wider and back, scaled by channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, 2 * channels)
        self.narrow = nn.Linear(2 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.5))

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.norm(self.depthwise(image).permute(0, 2, 3, 1))
        hidden = self.narrow(nn.functional.gelu(self.widen(hidden))).permute(0, 3, 1, 2)
        answer: Tensor = image + self.scale * hidden
        return answer


class NextStage(nn.Module):
    """Blocks in a module of its own, as the libraries have it."""

    def __init__(self, inputs: int, channels: int, blocks: int) -> None:
        super().__init__()
        self.shrink = nn.Identity() if inputs == channels else nn.Conv2d(inputs, channels, 2, stride=2)
        self.blocks = nn.Sequential(*[NextBlock(channels) for _ in range(blocks)])

    def forward(self, image: Tensor) -> Tensor:
        answer: Tensor = self.blocks(self.shrink(image))
        return answer


class TinyNext(nn.Module):
    """A ConvNeXt: a stem that cuts the image into patches, two stages, an average."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, stride=2)
        self.stages = nn.Sequential(NextStage(8, 8, 3), NextStage(8, 16, 5))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(self.stem(image)).mean((2, 3)))
        return logits


class Flattening(nn.Module):
    """Its dense layer counts the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten())
        self.head = nn.Linear(64, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(image))
        return logits


class Reshaping(Flattening):
    """Its code counts the pixels."""

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(image).reshape(len(image), 64))
        return logits


class PixelNet(nn.Module):
    """A U-Net of one step: an answer for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Conv2d(8, CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        fine = torch.relu(self.stem(image))
        answer: Tensor = self.head(torch.cat([fine, self.up(torch.relu(self.down(fine)))], dim=1))
        return answer


class Cuttable:
    """Random images in four classes, and the network of that name."""

    def __init__(self, network: str) -> None:
        self.network = network

    def model(self, role: str) -> nn.Module:
        return network(self.network)

    def splits(self) -> dict[str, Columns]:
        random = np.random.default_rng(0)
        rows = {"train": 64, "calibration": 16, "validation": 16, "test": 16}
        return {
            name: {"image": random.random((count, *SHAPE)).astype(np.float32), "target": np.arange(count) % CLASSES}
            for name, count in rows.items()
        }


def network(name: str) -> nn.Module:
    """A fresh network by its class."""
    ours = {kind.__name__: kind for kind in (TinyViT, TinyNext, Flattening, Reshaping, PixelNet)}
    if name in ours:
        return ours[name]()
    return {kind.__name__: kind for kind in (ResNet20, MobileNetClassifier, VggClassifier)}[name](SHAPE, CLASSES)


def cuttable(name: str) -> Workload:
    """The workload, loaded as the pipeline loads it."""
    folder = str(Path(__file__).parent)
    return load_workload(WorkloadRef(path="cut_networks:Cuttable", arguments={"network": name}, folder=folder))
