"""Scores of single samples by the built-in metrics: defined once, for training, measuring and the gates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.running.task_kind import fits_classes

Scores = NDArray[np.float64]


def top_classes(outputs: NDArray[Any]) -> NDArray[np.int64]:
    """The class that logits [N, C, ...] answer, [N, ...]; -1 where they answer none.

    That is where the largest logit is no finite number: arg max would call NaN the largest and could be right by luck.
    Minus infinity is a class ruled out. One logit a row, [N] or [N, 1], answers class 1 above 0, else class 0. The
    endpoint gives a row its label by the same rules.
    """
    if outputs.ndim == 1 or outputs.shape[1:] == (1,):
        logits = outputs.reshape(len(outputs))
        found: NDArray[np.int64] = np.where(np.isfinite(logits), (logits > 0).astype(np.int64), -1)
        return found
    answers: NDArray[np.int64] = np.where(np.isfinite(outputs.max(axis=1)), outputs.argmax(axis=1), -1)
    return answers


def accuracy_scores(outputs: NDArray[Any], targets: NDArray[Any]) -> Scores:
    """1.0 where the class answered is the target [N], else 0.0; by logits [N, C], or one logit [N] or [N, 1]."""
    if outputs.ndim > 2 or targets.size != len(outputs):
        raise ValueError(
            f"accuracy takes one class a row, targets [N] and answers [N, classes] or [N, 1]; they are "
            f"{list(targets.shape)} and {list(outputs.shape)}"
        )
    answers, targets = top_classes(outputs), targets.reshape(len(outputs))
    scores: Scores = ((answers == targets) & (answers >= 0)).astype(np.float64)
    return scores


def label_accuracy_scores(outputs: NDArray[Any], targets: NDArray[Any]) -> Scores:
    """Share of each sample's labels that are right, by a logit for each: above 0 means on. Both are [N, labels].

    A logit that is no finite number is wrong.
    """
    if outputs.shape != targets.shape:
        raise ValueError(
            f"several labels a row take as many answers as targets, [N, labels]; they are {list(outputs.shape)} and "
            f"{list(targets.shape)}"
        )
    right = ((outputs > 0) == (targets > 0.5)) & np.isfinite(outputs)
    scores: Scores = _by_sample(right).mean(axis=1, dtype=np.float64)
    return scores


def jaccard_scores(outputs: NDArray[Any], targets: NDArray[Any]) -> Scores:
    """Of each sample, the labels rightly given among all that it has or is given; 1 where there are neither.

    Shapes as in :func:`label_accuracy_scores`, which says little of labels that are rarely on. A sample with a logit
    that is no finite number has 0.
    """
    label_accuracy_scores(outputs, targets)  # refuses other shapes
    said, true = outputs > 0, targets > 0.5
    whole = _by_sample(np.isfinite(outputs)).all(axis=1)
    scores: Scores = np.where(whole, _shares(said & true, said | true), 0.0)
    return scores


def pixel_accuracy_scores(outputs: NDArray[Any], targets: NDArray[Any]) -> Scores:
    """Share of the places of each sample that are answered right, by logits [N, C, ...] and classes [N, ...].

    Places whose target is none of the C classes (255 and negative numbers say "unlabelled") are not counted; a sample
    without any other scores 1.
    """
    answers, known = top_classes(outputs), _labelled(outputs, targets)
    return _shares((answers == targets) & known, known)


def iou_scores(outputs: NDArray[Any], targets: NDArray[Any]) -> Scores:
    """Intersection over union of each sample, averaged over the classes that its targets or answers have.

    Shapes and unlabelled places as in :func:`pixel_accuracy_scores`; the background is a class like any other.
    """
    answers, known = top_classes(outputs), _labelled(outputs, targets)
    total, classes = np.zeros(len(targets)), np.zeros(len(targets))
    for label in range(outputs.shape[1]):
        said, true = (answers == label) & known, (targets == label) & known
        occurs = _by_sample(said | true).any(axis=1)
        total += np.where(occurs, _shares(said & true, said | true), 0.0)
        classes += occurs
    scores: Scores = np.where(classes > 0, total / np.maximum(classes, 1), 1.0)
    return scores


def _labelled(outputs: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.bool_]:
    if not fits_classes(outputs.shape, targets.shape):
        raise ValueError(
            f"a class for every place takes answers [N, classes, ...] and targets [N, ...] of the same size; they are "
            f"{list(outputs.shape)} and {list(targets.shape)}"
        )
    known: NDArray[np.bool_] = (targets >= 0) & (targets < outputs.shape[1])
    return known


def _shares(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> Scores:
    """How much of the whole the part is, by sample; 1 of nothing."""
    counts, of = _by_sample(part).sum(axis=1), _by_sample(whole).sum(axis=1)
    shares: Scores = np.where(of > 0, counts / np.maximum(of, 1), 1.0)
    return shares


def _by_sample(places: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return places.reshape(len(places), math.prod(places.shape[1:]))  # not -1: there may be no sample


def squared_error_scores(outputs: NDArray[Any], targets: NDArray[Any]) -> Scores:
    """Squared error per sample, averaged over the output's dimensions; shapes [N, ...]."""
    errors = (outputs.astype(np.float64).reshape(len(targets), -1) - targets.reshape(len(targets), -1)) ** 2
    scores: Scores = errors.mean(axis=1)
    return scores


def cosine_scores(outputs: NDArray[Any], targets: NDArray[Any]) -> Scores:
    """Cosine of each answer with its target, both [N, features]: 1 for the same direction, 0 where one is nothing."""
    if outputs.shape != targets.shape or outputs.ndim != 2:
        raise ValueError(
            f"the cosine takes answers and targets of one shape, [N, features]; they are {list(outputs.shape)} and "
            f"{list(targets.shape)}"
        )
    ours, theirs = outputs.astype(np.float64), targets.astype(np.float64)
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    scores: Scores = (ours * theirs).sum(axis=1) / np.maximum(lengths, 1e-12)
    return scores
