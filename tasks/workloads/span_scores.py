"""Scores of tags by word: the share of right ones, or how many of the spans that they mark are found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.workloads.sample_scores import Scores, top_classes

Span = tuple[str, int, int]
"""What it is, its first word, and the word behind it."""


def marks_spans(labels: Sequence[str]) -> bool:
    """Whether the tags mark spans: ``B-`` begins one, ``I-`` goes on with it, and ``O`` is outside."""
    return any(label.startswith("B-") for label in labels) and all(label[:2] in ("B-", "I-", "O") for label in labels)


def spans_of(tags: Sequence[str]) -> set[Span]:
    """The spans that tags mark (IOB2), read as generously as seqeval does: an ``I-`` that follows nothing of its kind
    begins a span too."""
    found, began, kind = set[Span](), 0, ""
    for place, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-")
        if kind and (mark != "I" or name != kind):
            found.add((kind, began, place))
            kind = ""
        if mark in ("B", "I") and not kind:
            began, kind = place, name
    return found


def span_f1_scores(outputs: NDArray[Any], targets: NDArray[Any], *, labels: Sequence[str]) -> Scores:
    """F1 of the spans of each text; 1 where there are none and none are found.

    Args:
        outputs: logits [N, tags, places]. ``targets``: numbers of tags [N, places], below 0 where no word begins.
        labels: the tags by their numbers; see :func:`marks_spans`. A logit that is no finite number marks nothing.
    """
    if outputs.ndim != 3 or outputs.shape[1] != len(labels) or targets.shape != (outputs.shape[0], outputs.shape[2]):
        raise ValueError(
            f"spans take answers [N, {len(labels)}, places] and targets [N, places]; they are {list(outputs.shape)} "
            f"and {list(targets.shape)}"
        )
    answers, scores = top_classes(outputs), np.ones(len(targets))
    for row, (said, true) in enumerate(zip(answers, targets, strict=True)):
        words = true >= 0
        ours = spans_of([labels[n] if n >= 0 else "O" for n in said[words].tolist()])
        theirs = spans_of([labels[n] for n in true[words].tolist()])
        if ours or theirs:
            scores[row] = 2 * len(ours & theirs) / (len(ours) + len(theirs))
    return scores
