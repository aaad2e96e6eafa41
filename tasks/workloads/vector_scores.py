"""Scores of sentence vectors: how near each is to its teacher's, and whether a query finds the text that answers it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.workloads.sample_scores import Scores, cosine_scores

_BLOCK = 256
"""Queries that are compared with all texts at a time."""
_MOST_GROUPS = 1 << 24
"""Whole numbers up to here are exact in float32."""

VectorTargets = NDArray[Any]
"""[N, features + 1], float32: the teacher's vector, and the row's match, see :func:`with_matches`."""


def with_matches(vectors: NDArray[np.float32], matches: NDArray[np.int64]) -> VectorTargets:
    """Targets of vectors [N, features] and the groups of texts (from 1), and of queries (below 0) [N]."""
    if len(matches) and np.abs(matches).max() >= _MOST_GROUPS:
        raise ValueError(f"{np.abs(matches).max()} groups are more than the {_MOST_GROUPS} that float32 can tell apart")
    return np.concatenate([vectors, matches[:, None].astype(np.float32)], axis=1)


def kept_cosine(outputs: NDArray[Any], targets: VectorTargets) -> Scores:
    """The cosine of each row with its teacher's vector, whatever matches what."""
    return cosine_scores(outputs, targets[:, : outputs.shape[1]])


def asks(targets: VectorTargets) -> NDArray[np.bool_]:
    """Which rows [N] are queries with a text to find among these rows."""
    matches = targets[:, -1]
    return (matches < 0) & np.isin(-matches, matches[matches > 0])


def retrieval_scores(
    outputs: NDArray[Any], targets: VectorTargets, *, worth: Callable[[NDArray[np.int64]], Scores]
) -> Scores:
    """What the place of the first match is worth to each query, among all texts of these rows by their cosine; [N].

    Texts as near as the match stand before it: a model that answers everything alike finds nothing. Rows that do not
    ask (see :func:`asks`) have 0. NaN where a vector that counts is not finite.

    Args:
        worth: of places from 1.
    """
    vectors = outputs.astype(np.float64)
    matches = targets[:, -1]
    asking, texts = np.flatnonzero(asks(targets)), np.flatnonzero(matches > 0)
    scores: Scores = np.zeros(len(targets))
    if not np.isfinite(vectors[texts]).all():
        scores[asking] = np.nan
        return scores
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    for at in range(0, len(asking), _BLOCK):
        rows = asking[at : at + _BLOCK]
        near = vectors[rows] @ vectors[texts].T
        fits = -matches[rows, None] == matches[None, texts]
        best = np.where(fits, near, -np.inf).max(axis=1, keepdims=True)
        found = worth(1 + ((near >= best) & ~fits).sum(axis=1))
        scores[rows] = np.where(np.isfinite(vectors[rows]).all(axis=1), found, np.nan)
    return scores


def _within(places: NDArray[np.int64], most: int) -> Scores:
    return (places <= most).astype(np.float64)


def _reciprocal(places: NDArray[np.int64]) -> Scores:
    scores: Scores = 1.0 / places
    return scores


RETRIEVAL: dict[str, Callable[[NDArray[Any], VectorTargets], Scores]] = {
    "recall@1": partial(retrieval_scores, worth=partial(_within, most=1)),
    "recall@10": partial(retrieval_scores, worth=partial(_within, most=10)),
    "mrr": partial(retrieval_scores, worth=_reciprocal),
}
"""By the name of the metric."""
