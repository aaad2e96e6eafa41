"""Models that continue text: an ONNX variant whose keys and values are handed in and out, and how it is asked.

``model.onnx`` takes ``tokens`` INT64 [N, length], ``seen`` INT32 [N] (tokens of each row up to and with its last one,
less 1), ``most`` INT32 (the largest of them, plus 1), ``wanted`` INT64 [1] (for how many of the last tokens logits are
wanted) and, for each layer, ``past.LAYER.key`` and ``past.LAYER.value`` [N, heads, length before, head's size], FLOAT
or INT8.
It answers ``logits`` [N, wanted, vocabulary] and ``present.LAYER.key`` and ``.value``. As a variant it is a model like
any other, from ``tokens`` to ``log_probabilities``: those of each token after the first, given the ones before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from model_registry.variant import Record, TensorSpec

TOKENS, SCORES = "tokens", "log_probabilities"
SEEN, MOST, WANTED, LOGITS = "seen", "most", "wanted", "logits"
_LOGITS = 1 << 24
"""Logits that are held at a time: 64 MiB."""

KvCache = Literal["float32", "int8"]
Run = Callable[[Sequence[str], Mapping[str, NDArray[Any]]], Sequence[NDArray[Any]]]
"""Asks a session for outputs, by inputs by name."""


class DecoderForm(Record):
    """What the file does not say of itself: ``assets/decoder.json``."""

    vocabulary: int = Field(ge=2)
    layers: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_size: int = Field(ge=8)
    context: int = Field(ge=2)
    """Tokens that it can have before it, at most."""
    begin: int | None = None
    """The token that its texts begin with, if they do."""
    end: tuple[int, ...] = ()
    """Tokens that end what it says."""
    kv_cache: KvCache = "float32"
    """Type of its keys and values; int8: the file has a scale for each channel of a head."""

    @property
    def cache_type(self) -> np.dtype[Any]:
        """The same for numpy."""
        return np.dtype(self.kv_cache)

    @property
    def token_bytes(self) -> int:
        """Of the keys and values of one token."""
        return self.layers * 2 * self.kv_heads * self.head_size * self.cache_type.itemsize

    @property
    def past(self) -> tuple[str, ...]:
        """Inputs for keys and values, those of a layer one after the other."""
        return tuple(f"past.{layer}.{part}" for layer in range(self.layers) for part in ("key", "value"))

    @property
    def present(self) -> tuple[str, ...]:
        """The outputs in the same order."""
        return tuple(name.replace("past", "present") for name in self.past)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """As a variant."""
        return (TensorSpec(name=TOKENS, datatype="INT64", shape=(-1, -1)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """As a variant."""
        return (TensorSpec(name=SCORES, datatype="FP32", shape=(-1, -1)),)

    def check(self, tokens: NDArray[np.int64], length: int) -> None:
        """Raise ValueError for tokens that the model does not know, or a text longer than its context."""
        wrong = tokens[(tokens < 0) | (tokens >= self.vocabulary)]
        if wrong.size:
            raise ValueError(f"token {wrong[0]} is none of the model's, which are 0 to {self.vocabulary - 1}")
        if length > self.context:
            raise ValueError(f"{length} tokens are more than the {self.context} that the model has context for")

    def feeds(self, tokens: NDArray[np.int64], *, wanted: int) -> dict[str, NDArray[Any]]:
        """Inputs for the first tokens [N, length] of texts, with nothing before them."""
        rows, length = tokens.shape
        nothing = np.zeros((rows, self.kv_heads, 0, self.head_size), self.cache_type)
        return {
            TOKENS: np.ascontiguousarray(tokens, np.int64),
            SEEN: np.full(rows, length - 1, np.int32),
            MOST: np.array(length, np.int32),
            WANTED: np.array([wanted], np.int64),
            **dict.fromkeys(self.past, nothing),
        }


def score_tokens(run: Run, form: DecoderForm, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Log-probabilities [N, length - 1] of each token after the first, given those before it.

    Raises:
        ValueError: a token is none of the model's, or there are more than its context holds. Tables of small rows
            answer zeros for the former.
    """
    rows, length = tokens.shape
    form.check(tokens, length)
    if length < 2 or not rows:
        return np.zeros((rows, max(0, length - 1)), np.float32)
    step, found = max(1, _LOGITS // (length * form.vocabulary)), list[NDArray[np.float32]]()
    for start in range(0, rows, step):
        part = tokens[start : start + step]
        (logits,) = run([LOGITS], form.feeds(part, wanted=length))
        found.append(log_probabilities(logits[:, :-1], part[:, 1:]))
    return np.concatenate(found)


def log_probabilities(logits: NDArray[np.float32], tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Of tokens [...] by logits [..., vocabulary]."""
    said = np.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    most = logits.max(axis=-1)
    total = np.exp(logits - most[..., None]).sum(axis=-1, dtype=np.float64)
    scores: NDArray[np.float32] = (said - most - np.log(total)).astype(np.float32)
    return scores
