"""Whether two versions answered a request alike."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import orjson

from serving.engines.engine_frames import PLAIN, Answered
from serving.tensors import Array, MalformedTensor, from_raw

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
    ours, theirs = _outputs(old), _outputs(new)
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


def _outputs(answered: Answered) -> dict[str, Array]:
    """Arrays by name; those that are in no form we know are left out."""
    body = memoryview(answered.body)
    at = answered.json_bytes if answered.json_bytes >= 0 else len(body)
    found: dict[str, Array] = {}
    for output in orjson.loads(body[:at])["outputs"]:
        size = (output.get("parameters") or {}).get("binary_data_size")
        with suppress(MalformedTensor, ValueError, KeyError):  # compared by what is left
            found[output["name"]] = _json(output) if size is None else _raw(output, body[at : at + size])
        at += size or 0
    return found


def _raw(output: dict[str, Any], data: memoryview) -> Array:
    return from_raw(data, output["datatype"], tuple(output["shape"]))


def _json(output: dict[str, Any]) -> Array:
    shape = tuple(output["shape"])
    if output["datatype"] == "BYTES":
        texts = np.empty(len(output["data"]), dtype=object)
        texts[:] = [text.encode() for text in output["data"]]
        return texts.reshape(shape)
    data = [float("nan") if value is None else value for value in output["data"]]
    return np.array(data, dtype=np.float64).reshape(shape)
