"""Networks that read tokens: a transformer encoder of BERT's kind, and a bag of words that it has to beat.

Both take ``tokens`` INT64 [N, length], filled up with the id of padding, and answer [N, outputs], or of each token
[N, outputs, length]. What they answer does not depend on how far a row is filled up, but for the order in which floats
are summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Activation = Literal["gelu", "gelu_new", "relu"]
Pooling = Literal["mean", "first", "max", "each"]
"""What becomes of the vectors of a text's tokens: their mean, the first one, the largest of each entry; or all stay."""
_NOWHERE = -1e9
"""Added to the score of a place that only fills the row up."""
_BUCKETS = 16_384
"""Of pairs of neighbours, by a hash of their ids."""
_FACTOR = 31_337
"""Of that hash; any odd number without small factors."""


@dataclass(frozen=True)
class EncoderShape:
    """What an encoder looks like. ``places``: rows of its table of positions; ``first``: where the first token's is.

    ``pad``: the id that fills rows up; ``separator``: the one that ends the first of two texts, None where there is
    only one.
    """

    vocabulary: int
    features: int
    layers: int
    heads: int
    hidden: int
    places: int
    pad: int
    first: int = 0
    separator: int | None = None
    activation: Activation = "gelu"
    epsilon: float = 1e-12


class TextEncoder(nn.Module):
    """Embeddings, transformer layers with the norm behind each part, the mean over the tokens, a linear head.

    Devlin et al. 2019, "BERT" (arXiv:1810.04805); the mean instead of the first token as in Reimers and Gurevych 2019,
    "Sentence-BERT" (arXiv:1908.10084), section 3.

    Args:
        outputs: of the head; None: there is none, and a text's vector is the answer.
        layers: numbers of the layers that there are, of those that the shape counts; by default all. A student with
            every other one finds the teacher's weights by their names.
        pooling: ``each``: an answer for each token, zeros where a row is only filled up.
    """

    def __init__(
        self,
        shape: EncoderShape,
        outputs: int | None,
        layers: Sequence[int] | None = None,
        *,
        pooling: Pooling = "mean",
    ) -> None:
        super().__init__()
        self.shape = shape
        self.pooling = pooling
        self.words = nn.Embedding(shape.vocabulary, shape.features)
        self.places = nn.Embedding(shape.places, shape.features)
        self.texts = nn.Embedding(2, shape.features) if shape.separator is not None else None
        self.norm = nn.LayerNorm(shape.features, eps=shape.epsilon)
        numbers = range(shape.layers) if layers is None else layers
        self.layers = nn.ModuleDict({str(number): EncoderLayer(shape) for number in numbers})
        self.head: nn.Module = nn.Identity() if outputs is None else nn.Linear(shape.features, outputs)
        for table in (self.words, self.places, self.texts):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        seen = tokens != self.shape.pad
        places = torch.arange(tokens.shape[1], device=tokens.device) + self.shape.first
        hidden = self.words(tokens) + self.places(places)
        if self.texts is not None and self.shape.separator is not None:
            ends = torch.eq(tokens, self.shape.separator).long()
            hidden = hidden + self.texts((ends.cumsum(1) - ends).clamp(max=1))
        hidden = self.norm(hidden)
        mask = torch.where(seen, 0.0, _NOWHERE)[:, None, None, :]
        for layer in self.layers.values():
            hidden = layer(hidden, mask)
        answer: Tensor
        if self.pooling == "each":
            answer = (self.head(hidden) * seen.unsqueeze(2)).transpose(1, 2)
        else:
            answer = self.head(_pooled(hidden, seen, self.pooling))
        return answer


class UnitVectors(nn.Module):
    """What a network answers [N, features], scaled to length 1: the product of two of them is their cosine."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.normalize(self.network(tokens), dim=1)


class EncoderLayer(nn.Module):
    """Attention and a dense network, each added to its input and followed by a norm."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.attention = SelfAttention(shape.features, shape.heads)
        self.norm1 = nn.LayerNorm(shape.features, eps=shape.epsilon)
        self.up = nn.Linear(shape.features, shape.hidden)
        self.activation = _activation(shape.activation)
        self.down = nn.Linear(shape.hidden, shape.features)
        self.norm2 = nn.LayerNorm(shape.features, eps=shape.epsilon)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        hidden = self.norm1(hidden + self.attention(hidden, mask))
        found: Tensor = self.norm2(hidden + self.down(self.activation(self.up(hidden))))
        return found


class SelfAttention(nn.Module):
    """Every token looks at all tokens of its row, with several heads.

    It counts on the size of a head and not on their number, so that pruning takes whole heads (Michel et al. 2019,
    "Are sixteen heads really better than one?", arXiv:1905.10650): what is left of the others answers as before.
    """

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.head_size = features // heads
        self.query = nn.Linear(features, features)
        self.key = nn.Linear(features, features)
        self.value = nn.Linear(features, features)
        self.out = nn.Linear(features, features)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (self._by_head(layer(hidden)) for layer in (self.query, self.key, self.value))
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        found: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return found

    def _by_head(self, hidden: Tensor) -> Tensor:
        """[N, length, features] to [N, heads, length, features of a head]."""
        split: Tensor = hidden.unflatten(2, (-1, self.head_size))  # type: ignore[no-untyped-call]
        return split.transpose(1, 2)


class TokenBag(nn.Module):
    """The mean of a vector for each token and one for each pair of neighbours, and a linear head: no order beyond that.

    Joulin et al. 2017, "Bag of Tricks for Efficient Text Classification" (arXiv:1607.01759): the words of a topic are
    often enough, at a hundredth of an encoder's cost. Pairs share the rows of a table by a hash of their ids.
    """

    def __init__(self, vocabulary: int, features: int, outputs: int, *, pad: int) -> None:
        super().__init__()
        self.pad = pad
        self.words = nn.Embedding(vocabulary, features)
        self.pairs = nn.Embedding(_BUCKETS, features)
        self.head = nn.Linear(features, outputs)
        self.dropped = nn.Dropout(0.15)
        for table in (self.words, self.pairs):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        seen = tokens != self.pad
        hashed = (tokens[:, :-1] * _FACTOR + tokens[:, 1:]) % _BUCKETS
        both = seen[:, :-1] & seen[:, 1:]
        words = mean_of(self.words(tokens), self.dropped(seen.float()))
        logits: Tensor = self.head(words + mean_of(self.pairs(hashed), self.dropped(both.float())))
        return logits


def mean_of(hidden: Tensor, weights: Tensor) -> Tensor:
    """Mean over the places [N, features] of vectors [N, length, features] by their weights [N, length]."""
    weights = weights.to(hidden.dtype)
    return torch.einsum("nlf,nl->nf", hidden, weights) / weights.sum(1, keepdim=True).clamp(min=1e-6)


def _pooled(hidden: Tensor, seen: Tensor, pooling: Pooling) -> Tensor:
    """One vector for each row."""
    if pooling == "first":
        return hidden[:, 0]
    if pooling == "max":
        return torch.where(seen.unsqueeze(2), hidden, _NOWHERE).amax(1)
    return mean_of(hidden, seen)


def _activation(name: Activation) -> nn.Module:
    if name == "relu":
        return nn.ReLU()
    return nn.GELU(approximate="tanh" if name == "gelu_new" else "none")
