"""Which token comes next: the likeliest, or one drawn as the request says; the same for the same seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from serving.decoding.generation_order import GenerationOrder
from serving.tensors import Array

_FEW = 512
"""Likely tokens among which a drawn one is looked for first: sorting a whole vocabulary takes milliseconds."""
Mask = Callable[[Array], None]
"""Sets the logits [vocabulary] of tokens that may not come next to minus infinity."""


class TokenChoice:
    """Chooses the tokens of one text.

    Args:
        order: how. Without a seed another one is drawn each time.
        mask: which tokens may come at all; None: every one.
    """

    def __init__(self, order: GenerationOrder, mask: Mask | None = None) -> None:
        self._order, self._mask = order, mask
        self._draw = np.random.default_rng(order.seed)
        self._counts = Counter[int]()

    def __call__(self, logits: Array) -> int:
        """The next token by its logits [vocabulary]."""
        token = self._chosen(self._changed(logits))
        self._counts[token] += 1
        return token

    def _changed(self, logits: Array) -> Array:
        order = self._order
        penalties = order.presence_penalty or order.frequency_penalty
        if not (order.logit_bias or self._mask or (penalties and self._counts)):
            return logits
        logits = logits.copy()
        for token, bias in order.logit_bias.items():
            logits[token] += bias
        if penalties:
            for token, count in self._counts.items():
                logits[token] -= order.presence_penalty + order.frequency_penalty * count
        if self._mask is not None:
            self._mask(logits)
        return logits

    def _chosen(self, logits: Array) -> int:
        order = self._order
        if order.temperature == 0:
            return int(logits.argmax())
        weights = np.exp((logits - logits.max()).astype(np.float64) / max(order.temperature, 1e-4))
        weights /= weights.sum()
        if order.top_p < 1:
            return self._likely(weights, order.top_p)
        ends = np.cumsum(weights)
        return int(min(np.searchsorted(ends, self._draw.random() * ends[-1], side="right"), len(ends) - 1))

    def _likely(self, weights: Array, share: float) -> int:
        """One of the likeliest tokens that have at least this share together (Holtzman et al. 2020,
        arXiv:1904.09751)."""
        few = np.argpartition(-weights, min(_FEW, len(weights)) - 1)[:_FEW]
        ranked = few[np.argsort(-weights[few], kind="stable")]
        if weights[ranked].sum() < share:
            ranked = np.argsort(-weights, kind="stable")
        ends = np.cumsum(weights[ranked])
        ends = ends[: int(np.searchsorted(ends, share)) + 1]
        return int(ranked[min(np.searchsorted(ends, self._draw.random() * ends[-1], side="right"), len(ends) - 1)])


def likeliest(logits: Array, count: int) -> tuple[Array, list[int]]:
    """Log-probabilities [vocabulary], and the likeliest tokens in their order."""
    most = logits.max()
    scores = logits - most - np.log(np.exp((logits - most).astype(np.float64)).sum())
    if not count:
        return scores, []
    few = np.argpartition(-scores, min(count, len(scores)) - 1)[:count]
    return scores, few[np.argsort(-scores[few], kind="stable")].tolist()
