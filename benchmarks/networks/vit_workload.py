"""A small vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) for printed characters."""

from __future__ import annotations

import torch
from glyph_rows import LABELS, SIZE, GreyImages
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, DEPTH, PATCH = 96, 4, 4, 4


class VitGlyphs(GreyImages):
    """Grey images for a vision transformer of 460 000 weights."""

    def model(self, role: str) -> nn.Module:
        """The same network whatever the role."""
        return Vit()


class Vit(nn.Module):
    """Patches of 4x4 pixels, learned places, four blocks, the mean of the tokens, a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, stride=PATCH)
        self.places = nn.Parameter(torch.randn(1, (SIZE // PATCH) ** 2, WIDTH) * 0.02)
        self.blocks = nn.Sequential(*[Block(WIDTH, HEADS) for _ in range(DEPTH)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(LABELS))

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.places
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


class Block(nn.Module):
    """Attention and a dense network, each behind a norm and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.dense = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens))
        added: Tensor = tokens + self.dense(self.norm2(tokens))
        return added


class Attention(nn.Module):
    """Every token looks at all tokens, with several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (self._by_head(layer(tokens)) for layer in (self.query, self.key, self.value))
        seen = functional.scaled_dot_product_attention(query, key, value)
        answer: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return answer

    def _by_head(self, tokens: Tensor) -> Tensor:
        """[N, tokens, width] to [N, heads, tokens, width of a head]."""
        split: Tensor = tokens.unflatten(2, (self.heads, -1))  # type: ignore[no-untyped-call]
        return split.transpose(1, 2)
