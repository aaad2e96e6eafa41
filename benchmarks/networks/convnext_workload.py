"""A ConvNeXt of two stages (Liu et al. 2022, "A ConvNet for the 2020s", arXiv:2201.03545) for printed characters."""

from __future__ import annotations

import torch
from glyph_rows import LABELS, GreyImages
from torch import Tensor, nn

WIDTHS, DEPTHS = (48, 96), (2, 2)


class ConvNextGlyphs(GreyImages):
    """Grey images for a ConvNeXt of 220 000 weights."""

    def model(self, role: str) -> nn.Module:
        """The same network whatever the role."""
        return ConvNext()


class ConvNext(nn.Module):
    """Patches of 2x2 pixels, two stages, an average over the 7x7 places that are left, a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        first, second = WIDTHS
        self.stem = nn.Sequential(nn.Conv2d(1, first, 2, stride=2), ChannelNorm(first))
        self.stage1 = nn.Sequential(*[Block(first) for _ in range(DEPTHS[0])])
        self.downsample = nn.Sequential(ChannelNorm(first), nn.Conv2d(first, second, 2, stride=2))
        self.stage2 = nn.Sequential(*[Block(second) for _ in range(DEPTHS[1])])
        self.norm = nn.LayerNorm(second, eps=1e-6)
        self.head = nn.Linear(second, len(LABELS))

    def forward(self, image: Tensor) -> Tensor:
        features = self.stage2(self.downsample(self.stage1(self.stem(image))))
        logits: Tensor = self.head(self.norm(features.mean((-2, -1))))
        return logits


class Block(nn.Module):
    """Depthwise 7x7, a norm, four times as wide and back, scaled by channel, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.project = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.norm(self.depthwise(features).permute(0, 2, 3, 1))
        hidden = self.scale * self.project(self.act(self.expand(hidden)))
        added: Tensor = features + hidden.permute(0, 3, 1, 2)
        return added


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of [N, C, H, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, features: Tensor) -> Tensor:
        normed: Tensor = self.norm(features.permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)
