"""Scores of single samples by the built-in metrics: defined once, for training, measuring and the gates."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


def top_classes(outputs: NDArray[Any]) -> NDArray[np.int64]:
    """The class that each row of logits [N, C] answers, [N]; -1 where it answers none.

    That is where the largest logit is no finite number: arg max would call NaN the largest and could be right by luck.
    Minus infinity is a class ruled out. The endpoint gives a row its label by the same rule.
    """
    answers: NDArray[np.int64] = np.where(np.isfinite(outputs.max(axis=1)), outputs.argmax(axis=1), -1)
    return answers


def accuracy_scores(outputs: NDArray[Any], targets: NDArray[Any]) -> Scores:
    """1.0 where the class answered (see :func:`top_classes`) by the logits [N, C] is the target [N], else 0.0."""
    answers = top_classes(outputs)
    scores: Scores = ((answers == targets) & (answers >= 0)).astype(np.float64)
    return scores


def squared_error_scores(outputs: NDArray[Any], targets: NDArray[Any]) -> Scores:
    """Squared error per sample, averaged over the output's dimensions; shapes [N, ...]."""
    errors = (outputs.astype(np.float64).reshape(len(targets), -1) - targets.reshape(len(targets), -1)) ** 2
    scores: Scores = errors.mean(axis=1)
    return scores
