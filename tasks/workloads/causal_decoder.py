"""A transformer that continues text: of the Llama kind, and with other norms, places and biases of the GPT-2 kind.

It takes ``tokens`` INT64 [N, length] and answers the log-probability of each token after the first, given those before
it, [N, length - 1]: logits for a whole vocabulary at every place would be a thousand times as much to keep and compare.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

DecoderActivation = Literal["silu", "gelu", "gelu_new", "relu"]
_LOGITS = 1 << 25
"""Logits that are computed at a time."""


@dataclass(frozen=True)
class DecoderShape:
    """What a decoder looks like.

    ``context``: tokens that it can have before it. ``rotation``: how far the pairs of a head's features turn from one
    place to the next, in radians (Su et al. 2021, arXiv:2104.09864); None: a table of places. ``norm``: of root mean
    squares, or with mean and bias. ``gated``: whether the dense part is a product of two. ``biases``: of which linear
    layers. ``head_norms``: queries and keys are normed by head. ``tied``: the head is the table of tokens. ``scaled``:
    the table's rows are taken times the root of their length. ``begin``, ``end``: tokens, see
    :class:`model_registry.decoder_form.DecoderForm`.
    """

    vocabulary: int
    features: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    hidden: int
    context: int
    rotation: tuple[float, ...] | None
    norm: Literal["rms", "layer"] = "rms"
    epsilon: float = 1e-5
    activation: DecoderActivation = "silu"
    gated: bool = True
    biases: Literal["none", "qkv", "all"] = "none"
    head_norms: bool = False
    tied: bool = True
    scaled: bool = False
    begin: int | None = None
    end: tuple[int, ...] = ()

    def with_tokens(self, kept: NDArray[np.int64]) -> DecoderShape:
        """The shape where only these tokens are left, ``begin`` and ``end`` among them; ascending."""
        numbers = {int(former): number for number, former in enumerate(kept)}
        begin = None if self.begin is None else numbers[self.begin]
        return replace(self, vocabulary=len(kept), begin=begin, end=tuple(numbers[former] for former in self.end))


class CausalDecoder(nn.Module):
    """Embeddings, layers of attention to what came before and a dense network, a head over the vocabulary.

    Touvron et al. 2023, "Llama 2" (arXiv:2307.09288); Ainslie et al. 2023 on shared keys and values (arXiv:2305.13245);
    Radford et al. 2019, GPT-2.

    Args:
        layers: numbers of the layers that there are, of those that the shape counts; by default all. A student with
            some of them finds the teacher's weights by their names.
    """

    def __init__(self, shape: DecoderShape, layers: Sequence[int] | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.words = nn.Embedding(shape.vocabulary, shape.features)
        self.places = nn.Embedding(shape.context, shape.features) if shape.rotation is None else None
        numbers = range(shape.layers) if layers is None else layers
        self.layers = nn.ModuleDict({str(number): DecoderLayer(shape) for number in numbers})
        self.norm = _norm(shape)
        self.head = None if shape.tied else nn.Linear(shape.features, shape.vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                small = name.endswith(("out.weight", "down.weight"))  # as GPT-2: each adds to the same stream
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * len(self.layers)) if small else 0.02)

    @property
    def never_pruned(self) -> tuple[str, ...]:
        """Modules whose outputs keep their width: all that adds to the stream, and heads, which share keys and values.
        What is left are the units of the dense parts, three fifths of the weights or more."""
        parts = [f"layers.{number}.{part}" for number in self.layers for part in ("attention", "down")]
        tables = [name for name, module in (("words", self.words), ("places", self.places)) if module is not None]
        return (*tables, *parts)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.states(tokens)[:, :-1]
        said = tokens[:, 1:]
        step = max(1, _LOGITS // (max(1, said.shape[1]) * self.shape.vocabulary))
        parts = zip(torch.split(hidden, step), torch.split(said, step), strict=True)
        return torch.cat([_log_probabilities(self.logits(part), row) for part, row in parts])

    def states(self, tokens: Tensor) -> Tensor:
        """What the head is asked with, [N, length, features]."""
        length, shape = tokens.shape[1], self.shape
        hidden: Tensor = self.words(tokens)
        if shape.scaled:
            hidden = hidden * math.sqrt(shape.features)
        turns = None
        if self.places is not None:
            hidden = hidden + self.places(torch.arange(length, device=tokens.device))
        else:
            assert shape.rotation is not None
            turns = torch.outer(torch.arange(length).float(), torch.tensor(shape.rotation)).to(hidden.device)
        for layer in self.layers.values():
            hidden = layer(hidden, turns)
        found: Tensor = self.norm(hidden)
        return found

    @property
    def head_weight(self) -> Tensor:
        """What turns states into logits, [vocabulary, features]; the table of tokens, where they share it."""
        return self.words.weight if self.head is None else self.head.weight

    def logits(self, states: Tensor) -> Tensor:
        """Of the next token, [..., vocabulary], by what :meth:`states` gives."""
        return functional.linear(states, self.head_weight)


class DecoderLayer(nn.Module):
    """Attention and a dense network, each asked with a norm of the stream and added to it."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.norm1 = _norm(shape)
        self.attention = CausalAttention(shape)
        self.norm2 = _norm(shape)
        every = shape.biases == "all"
        self.gate = nn.Linear(shape.features, shape.hidden, bias=every) if shape.gated else None
        self.up = nn.Linear(shape.features, shape.hidden, bias=every)
        self.down = nn.Linear(shape.hidden, shape.features, bias=every)
        self.activation = _activation(shape.activation)

    def forward(self, hidden: Tensor, turns: Tensor | None) -> Tensor:
        hidden = hidden + self.attention(self.norm1(hidden), turns)
        normed = self.norm2(hidden)
        wide = self.up(normed)
        wide = self.activation(wide) if self.gate is None else self.activation(self.gate(normed)) * wide
        found: Tensor = hidden + self.down(wide)
        return found


class CausalAttention(nn.Module):
    """Every token looks at itself and those before it; several heads may share keys and values."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.shape = shape
        queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        self.query = nn.Linear(shape.features, queries, bias=shape.biases != "none")
        self.key = nn.Linear(shape.features, keys, bias=shape.biases != "none")
        self.value = nn.Linear(shape.features, keys, bias=shape.biases != "none")
        self.out = nn.Linear(queries, shape.features, bias=shape.biases == "all")
        self.query_norm = nn.RMSNorm(shape.head_size, eps=shape.epsilon) if shape.head_norms else None
        self.key_norm = nn.RMSNorm(shape.head_size, eps=shape.epsilon) if shape.head_norms else None

    def forward(self, hidden: Tensor, turns: Tensor | None) -> Tensor:
        query, key, value = (self._by_head(layer(hidden)) for layer in (self.query, self.key, self.value))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if turns is not None:
            query, key = turned(query, turns), turned(key, turns)
        seen = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=self.shape.heads != self.shape.kv_heads
        )
        found: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return found

    def _by_head(self, hidden: Tensor) -> Tensor:
        """[N, length, features] to [N, heads, length, features of a head]."""
        split: Tensor = hidden.unflatten(2, (-1, self.shape.head_size))  # type: ignore[no-untyped-call]
        return split.transpose(1, 2)


def turned(hidden: Tensor, turns: Tensor) -> Tensor:
    """Vectors [N, heads, length, size], each pair of a feature and the one half a vector on turned by its place.

    Args:
        turns: angles [length, size / 2] in radians.
    """
    halves: Tensor = hidden.unflatten(-1, (2, -1))  # type: ignore[no-untyped-call]
    low, high = halves.unbind(-2)
    cos, sin = turns.cos(), turns.sin()
    # Not cut and joined: torch-pruning takes that for channels that come from several layers.
    return torch.stack([low * cos - high * sin, high * cos + low * sin], dim=-2).flatten(-2)


def _log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """Of tokens [N, length] by logits [N, length, vocabulary]."""
    said = logits.gather(-1, tokens[..., None]).squeeze(-1)
    return said - logits.logsumexp(-1)


def _norm(shape: DecoderShape) -> nn.Module:
    if shape.norm == "layer":
        return nn.LayerNorm(shape.features, eps=shape.epsilon)
    return nn.RMSNorm(shape.features, eps=shape.epsilon)


def _activation(name: DecoderActivation) -> nn.Module:
    if name == "silu":
        return nn.SiLU()
    if name == "relu":
        return nn.ReLU()
    return nn.GELU(approximate="tanh" if name == "gelu_new" else "none")
