"""Whether two versions answered a request alike."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from serving.answer_tensors import answer_tensors
from serving.engines.engine_frames import PLAIN, Answered
from serving.tensors import Array

MOST_BYTES = 1 << 20
"""Answers that are longer are not compared: that would hold up others."""


class AnswerAgreement(NamedTuple):
    """Of ``rows`` answered by both, ``differ`` not alike; ``largest``: difference of numbers, as a share of the largest
    number of the old version's; NaN where none were compared."""

    rows: int
    differ: int
    largest: float


def compare_answers(old: Answered, new: Answered, tolerance: float) -> AnswerAgreement | None:
    """Compare the outputs that both have; None where they cannot be compared.

    Labels (BYTES) decide where there are any: they are what a caller acts on. Otherwise numbers do, all of which must
    be within ``tolerance`` times the largest of the output. What is missing must be missing in both.
    """
    if len(old.body) > MOST_BYTES or len(new.body) > MOST_BYTES or (old.packing, new.packing) != (PLAIN, PLAIN):
        return None
    ours, theirs = (answer_tensors(answered.body, answered.json_bytes) for answered in (old, new))
    shared = [name for name in ours if name in theirs]
    if not shared:
        return None
    texts = [name for name in shared if ours[name].dtype == object]
    wrong, largest = np.zeros(1, dtype=bool), float("nan")
    for name in shared:
        a, b = ours[name], theirs[name]
        if a.shape != b.shape or a.dtype != b.dtype or not a.size:
            rows = max(len(a), len(b), 1)
            return AnswerAgreement(rows, rows, largest)
        if a.dtype == object:
            bad = a != b
        else:
            bad, most = _differ(a.astype(np.float64), b.astype(np.float64), tolerance)
            largest = float(np.fmax(largest, most))
        if name in texts or not texts:
            by_row = bad.reshape(len(a), -1).any(axis=1)
            wrong = wrong | by_row if len(wrong) in (1, len(by_row)) else np.ones(1, dtype=bool)
    return AnswerAgreement(len(wrong), int(wrong.sum()), largest)


def _differ(a: Array, b: Array, tolerance: float) -> tuple[Array, float]:
    known = np.isfinite(a) & np.isfinite(b)
    scale = max(float(np.abs(a[np.isfinite(a)]).max(initial=0.0)), 1e-12)
    with np.errstate(invalid="ignore"):
        apart = np.abs(a - b) / scale
    bad = np.where(known, apart > tolerance, np.isfinite(a) | np.isfinite(b))
    return bad, float(apart[known].max(initial=0.0))
