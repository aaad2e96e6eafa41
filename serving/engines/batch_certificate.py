"""Whether a model answers a row alike whatever other rows are in its batch: only then are requests run together.

ONNX Runtime's dynamic quantization takes its scale from the whole batch, so a stranger's request would change one's
answer (ours takes it from the row, :mod:`tasks.quantize.int8_dynamic`); kernels for several rows may sum in another
order than those for one. So it is measured, on the machine that serves, each time a version is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from model_registry.variant import TensorSpec
from serving.engine import Engine
from serving.exceptions import EngineRunError
from serving.tensors import NUMPY, Array

_ROWS = (3, 8)
_FREE = 4
"""Size of dimensions other than the batch that are free."""
_TOLERANCE = 1e-4
"""Of the larger of 1 and the answer: differences of summing in another order, and no more."""
_SECONDS = 0.1
"""Models that take longer for a row gain nothing from batches that would be worth measuring them for."""
_BY_BATCH = b"DynamicQuantize"
"""Begins the names of operators that take their scale from all rows of a batch."""


@dataclass(frozen=True)
class BatchCertificate:
    """How much an answer depends on the other rows of its batch.

    ``kind``: ``exact`` (to the bit), ``close`` (by rounding alone), ``none`` (more than that, or unknown). ``why``:
    what was found, for people. ``seconds``: what a row takes in a batch.
    """

    kind: Literal["exact", "close", "none"]
    why: str
    seconds: float = 0.0

    @property
    def joins(self) -> bool:
        """Whether requests may be run together."""
        return self.kind != "none"


def certify(engine: Engine, model: bytes) -> BatchCertificate:
    """Run rows alone and in batches, and compare.

    Args:
        engine: warmed up.
        model: the ONNX file's bytes.
    """
    if _BY_BATCH in model:
        return BatchCertificate("none", "its dynamic quantization takes the scale from the whole batch")
    unbatched = [s.name for s in (*engine.inputs, *engine.outputs) if s.shape[:1] != (-1,)]
    if unbatched:
        return BatchCertificate("none", f"{unbatched[0]!r} has no batch dimension")
    if text := [spec.name for spec in engine.inputs if spec.datatype == "BYTES"]:
        return BatchCertificate("none", f"input {text[0]!r} is text, which nobody can make up")
    try:
        return _compare(engine)
    except EngineRunError:
        return BatchCertificate("none", "it does not run on made-up rows")


def _compare(engine: Engine) -> BatchCertificate:
    rows = _made_up(engine.inputs, max(_ROWS))
    names = engine.graph_outputs
    alone = list[Mapping[str, Array]]()
    for i in range(max(_ROWS)):
        began = time.perf_counter()
        alone.append(engine.run({name: array[i : i + 1] for name, array in rows.items()}, names))
        if time.perf_counter() - began > _SECONDS:
            return BatchCertificate("none", f"a row takes longer than {_SECONDS:g} s")
    exact, worst, seconds = True, 0.0, 0.0
    for count in _ROWS:
        began = time.perf_counter()
        together = engine.run({name: array[:count] for name, array in rows.items()}, names)
        seconds = (time.perf_counter() - began) / count
        for name in names:
            wanted = np.concatenate([found[name] for found in alone[:count]])
            if wanted.shape != together[name].shape:
                return BatchCertificate("none", f"output {name!r} of {count} rows has not {count} rows")
            if wanted.tobytes() != together[name].tobytes():
                exact, worst = False, max(worst, _difference(wanted, together[name]))
    if exact:
        return BatchCertificate("exact", "rows alone and in a batch are answered alike to the bit", seconds)
    if worst <= _TOLERANCE:
        return BatchCertificate("close", f"rows in a batch differ by rounding alone (at most {worst:.1e})", seconds)
    return BatchCertificate("none", f"rows in a batch are answered otherwise than alone (by up to {worst:.1e})")


def _made_up(inputs: Sequence[TensorSpec], count: int) -> dict[str, Array]:
    """Rows of random values, the same each time; small ones where the input holds whole numbers."""
    draw = np.random.default_rng(0)
    made = dict[str, Array]()
    for spec in inputs:
        shape, dtype = (count, *(_FREE if size == -1 else size for size in spec.shape[1:])), NUMPY[spec.datatype]
        if dtype.kind == "f":
            made[spec.name] = draw.standard_normal(shape).astype(dtype)
        else:
            made[spec.name] = draw.integers(0, 256 if spec.datatype == "UINT8" else 2, shape).astype(dtype)
    return made


def _difference(wanted: Array, found: Array) -> float:
    """Largest difference, as a share of the larger of 1 and the answer; infinite where it is no number or text."""
    if wanted.dtype.kind != "f":
        return float("inf")
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(wanted.astype(np.float64) - found) / np.maximum(1.0, np.abs(wanted))
    both_missing = np.isnan(wanted) & np.isnan(found)
    apart = np.where(both_missing | (wanted == found), 0.0, apart)
    return float(np.max(apart, initial=0.0)) if np.isfinite(apart).all() else float("inf")
