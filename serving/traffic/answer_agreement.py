"""Whether two versions answered a request alike."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np

from serving.answer_tensors import answer_tensors
from serving.engines.engine_frames import GZIP, Answered
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
    """Compare the old version's outputs; None where they cannot be compared. Without one of them, or with another shape
    or datatype, no row is alike; what the new version answers besides is its own affair.

    Labels (BYTES) decide where there are any: they are what a caller acts on. Otherwise numbers do, all of which must
    be within ``tolerance`` times the largest of the output. What is missing must be missing in both.
    """
    bodies = _plain_body(old), _plain_body(new)
    if bodies[0] is None or bodies[1] is None:
        return None
    ours, theirs = answer_tensors(bodies[0], old.json_bytes), answer_tensors(bodies[1], new.json_bytes)
    if not ours:
        return None
    texts = [name for name in ours if ours[name].dtype == object]
    wrong, largest = np.zeros(1, dtype=bool), float("nan")
    for name, a in ours.items():
        b = theirs.get(name)
        if b is None or a.shape != b.shape or a.dtype != b.dtype or not a.size:
            rows = max(len(a), 1 if b is None else len(b), 1)
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


def _plain_body(answered: Answered) -> bytes | memoryview | None:
    """Not packed; None where it is too long."""
    body = answered.body
    if answered.packing == GZIP:
        body = zlib.decompressobj(wbits=31).decompress(body, MOST_BYTES + 1)
    return body if len(body) <= MOST_BYTES else None


def _differ(a: Array, b: Array, tolerance: float) -> tuple[Array, float]:
    known = np.isfinite(a) & np.isfinite(b)
    scale = max(float(np.abs(a[np.isfinite(a)]).max(initial=0.0)), 1e-12)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(a - b) / scale
    bad = np.where(known, apart > tolerance, np.isfinite(a) | np.isfinite(b))
    return bad, float(apart[known].max(initial=0.0))
