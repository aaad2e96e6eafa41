"""Logistic regression on how often each token and each pair of neighbours is there: what a text's words alone tell.

Wang and Manning 2012, "Baselines and Bigrams", found such models hard to beat on topics. Pairs share columns by a hash.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize

_PAIRS = 1 << 16
_FACTOR = 31_337
_STRENGTH, _ROUNDS = 10.0, 200
_CALLS = 20


@dataclass(frozen=True)
class BagOfWords:
    """``answers`` [rows, classes] to the rows asked about; ``bytes`` of its weights in fp32 that are not zero;
    ``row_ms``: the median call with one row."""

    answers: NDArray[np.float32]
    seconds: float
    bytes: int
    row_ms: float


def bag_of_words(
    tokens: NDArray[Any], targets: NDArray[Any], asked: NDArray[Any], *, pad: int, classes: int, seed: int
) -> BagOfWords:
    """Train on ids [rows, length] and their classes, and answer ``asked``.

    Args:
        pad: the id that fills rows up.
    """
    vocabulary = int(max(tokens.max(), asked.max())) + 1
    model = LogisticRegression(C=_STRENGTH, max_iter=_ROUNDS, random_state=seed)
    began = time.monotonic()
    counted = _counts(tokens, vocabulary, pad)
    model.fit(counted, targets)
    seconds = time.monotonic() - began
    answers = np.zeros((len(asked), classes), np.float32)
    answers[:, model.classes_] = model.predict_proba(_counts(asked, vocabulary, pad))  # a class may be missing
    used = int(np.count_nonzero(model.coef_.any(axis=0)))
    times = []
    for _ in range(_CALLS):
        began = time.perf_counter()
        model.predict_proba(_counts(asked[:1], vocabulary, pad))
        times.append(1e3 * (time.perf_counter() - began))
    return BagOfWords(answers, seconds, 4 * used * len(model.coef_), median(times))


def _counts(tokens: NDArray[Any], vocabulary: int, pad: int) -> Any:
    """A sparse row for each text, of length 1: its tokens, and behind them its pairs."""
    pairs = (tokens[:, :-1] * _FACTOR + tokens[:, 1:]) % _PAIRS + vocabulary
    columns = np.concatenate([tokens, pairs], axis=1)
    there = np.concatenate([tokens != pad, (tokens[:, :-1] != pad) & (tokens[:, 1:] != pad)], axis=1)
    rows = np.broadcast_to(np.arange(len(tokens))[:, None], columns.shape)[there]
    shape = (len(tokens), vocabulary + _PAIRS)
    return normalize(csr_matrix((np.ones(len(rows), np.float32), (rows, columns[there])), shape=shape))
