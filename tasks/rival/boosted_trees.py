"""Gradient-boosted trees (Friedman 2001; scikit-learn's are those of LightGBM, Ke et al. 2017) on a table."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

Table = NDArray[Any]
_CALLS = 20


@dataclass(frozen=True)
class Trees:
    """``answers`` [rows, classes] (or [rows]) to the rows asked about; ``bytes`` of the nodes alone, as in memory;
    ``row_ms``: the median call with one row."""

    answers: NDArray[np.float32]
    seconds: float
    rounds: int
    bytes: int
    row_ms: float


def boosted_trees(
    table: Table, targets: Table, asked: Table, *, classes: int | None, rounds: int, learning_rate: float, seed: int
) -> Trees:
    """Train on the table [rows, columns], a tenth of it held back to stop by, and answer ``asked``.

    Args:
        classes: number of classes; None: the targets are numbers.
    """
    kind = HistGradientBoostingRegressor if classes is None else HistGradientBoostingClassifier
    model: Any = kind(max_iter=rounds, learning_rate=learning_rate, early_stopping=True, random_state=seed)
    began = time.monotonic()
    model.fit(table, targets)
    seconds = time.monotonic() - began
    if classes is None:
        answers = model.predict(asked).astype(np.float32)
    else:
        answers = np.zeros((len(asked), classes), np.float32)
        answers[:, model.classes_] = model.predict_proba(asked)  # a class may be missing in the table
    nodes = sum(tree.nodes.nbytes for one_round in model._predictors for tree in one_round)
    return Trees(answers, seconds, int(model.n_iter_), int(nodes), _row_ms(model, asked[:1]))


def log_odds(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of two classes [rows, 2] as one logit [rows, 1], which is what a binary workload is judged by."""
    zero, one = np.clip(probabilities.astype(np.float64), 1e-12, 1.0).T
    logits: NDArray[np.float32] = np.log(one / zero).astype(np.float32)[:, None]
    return logits


def _row_ms(model: Any, row: Table) -> float:
    times = []
    for _ in range(_CALLS):
        began = time.perf_counter()
        model.predict(row)
        times.append(1000 * (time.perf_counter() - began))
    return median(times)
