"""Per-sample scores of the two built-in metrics, in numpy: no torch, no workload."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.evidence.paired import Scores

Array = NDArray[Any]


def builtin_scores(metric: str, outputs: Array, targets: Array) -> Scores:
    """Scores [N] of ``accuracy`` or ``mse``, exactly as the workload's defaults define them.

    A row with NaN is a wrong answer; arg max would call NaN the largest logit and could be right by luck.

    Raises:
        KeyError: no such built-in metric.
    """
    return {"accuracy": accuracy_scores, "mse": squared_error_scores}[metric](outputs, targets)


def accuracy_scores(outputs: Array, targets: Array) -> Scores:
    """1.0 where the arg max of the logits [N, C] is the target [N], else 0.0."""
    finite = np.isfinite(outputs).all(axis=1)
    scores: Scores = ((outputs.argmax(axis=1) == targets) & finite).astype(np.float64)
    return scores


def squared_error_scores(outputs: Array, targets: Array) -> Scores:
    """Squared error per sample, averaged over the output's dimensions; shapes [N, ...]."""
    errors = (outputs.astype(np.float64).reshape(len(targets), -1) - targets.reshape(len(targets), -1)) ** 2
    scores: Scores = errors.mean(axis=1)
    return scores


def is_classifier(outputs: Array, targets: Array) -> bool:
    """Whether outputs are logits [N, C] and targets are class indices [N]."""
    return outputs.ndim == 2 and targets.ndim == 1 and bool(np.issubdtype(targets.dtype, np.integer))
