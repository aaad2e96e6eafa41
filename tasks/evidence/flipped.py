"""The samples on which a variant is better or worse than its baseline: their inputs and both answers, as a file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_registry.manifest import FileEntry
from model_registry.measurement import Better
from model_registry.store import Store
from tasks.evidence.arrays import Array, fetch_arrays, publish_arrays
from tasks.evidence.paired import Scores

FILE = "flips.npz"
_KEPT = 24
_MOST_BYTES = 32 << 20
"""Of the inputs and answers together: of large ones fewer are kept."""


@dataclass(frozen=True)
class Flipped:
    """K samples of a split. ``rows`` [K]: their numbers; ``better`` [K]: bool; ``targets``, ``chosen`` and ``baseline``
    (outputs), each ``inputs``: [K, ...]."""

    rows: NDArray[np.int64]
    better: NDArray[np.bool_]
    targets: Array
    chosen: Array
    baseline: Array
    inputs: dict[str, Array]


def flipped_rows(chosen: Scores, baseline: Scores, *, better: Better, count: int) -> tuple[Array, Array]:
    """Rows on which the chosen one scores better, and worse, up to ``count`` each, in ascending order.

    Where all differ alike (right and wrong) they are drawn evenly from the split, which may be sorted by class; else
    those that differ most.

    Args:
        chosen, baseline: scores, shape [N].
    """
    gain = (chosen - baseline) * (1.0 if better == "higher" else -1.0)
    return _pick(gain, count), _pick(-gain, count)


def publish_flips(
    store: Store,
    *,
    scores: tuple[Scores, Scores],
    outputs: tuple[Array, Array],
    targets: Array,
    inputs: dict[str, Array],
    better: Better,
    counted: Array | None = None,
) -> FileEntry:
    """Store the flipped samples of a split as :data:`FILE`.

    Args:
        scores, outputs: of the chosen variant and of the baseline, [C] and [N, ...].
        targets, inputs: [N, ...].
        counted: [C], the rows that the scores are of; None: all.
    """
    each = sum(array[:1].nbytes for array in (*inputs.values(), *outputs, targets))
    count = max(1, min(_KEPT, _MOST_BYTES // max(1, 2 * each)))
    up, down = flipped_rows(*scores, better=better, count=count)
    rows = np.concatenate([up, down])
    rows = rows if counted is None else counted[rows]
    arrays = {"rows": rows, "better": np.arange(len(rows)) < len(up), "targets": targets[rows]}
    arrays |= {"chosen": outputs[0][rows], "baseline": outputs[1][rows]}
    return publish_arrays(store, FILE, **arrays, **{f"input:{name}": array[rows] for name, array in inputs.items()})


def fetch_flips(store: Store, entry: FileEntry) -> Flipped:
    """Read what :func:`publish_flips` stored; raises like :meth:`Store.fetch`."""
    arrays = fetch_arrays(store, entry)
    inputs = {name.removeprefix("input:"): a for name, a in arrays.items() if name.startswith("input:")}
    return Flipped(**{name: a for name, a in arrays.items() if not name.startswith("input:")}, inputs=inputs)


def _pick(gain: Scores, count: int) -> NDArray[np.int64]:
    rows = np.flatnonzero(gain > 0)
    if len(rows) <= count:
        return rows
    if np.ptp(gain[rows]) == 0:
        return rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]
    return np.sort(rows[np.argsort(-gain[rows], kind="stable")[:count]])
