"""Scores of single samples by the built-in metrics: defined once, for training, measuring and the gates."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


def accuracy_scores(outputs: NDArray[Any], targets: NDArray[Any]) -> Scores:
    """1.0 where the arg max of the logits [N, C] is the target [N], else 0.0.

    A row with NaN or infinity is a wrong answer: arg max would call NaN the largest logit and could be right by luck.
    """
    finite = np.isfinite(outputs).all(axis=1)
    scores: Scores = ((outputs.argmax(axis=1) == targets) & finite).astype(np.float64)
    return scores


def squared_error_scores(outputs: NDArray[Any], targets: NDArray[Any]) -> Scores:
    """Squared error per sample, averaged over the output's dimensions; shapes [N, ...]."""
    errors = (outputs.astype(np.float64).reshape(len(targets), -1) - targets.reshape(len(targets), -1)) ** 2
    scores: Scores = errors.mean(axis=1)
    return scores
