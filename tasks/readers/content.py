"""What a row is: the values that the model will see. Rows with equal hashes are the same sample."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.running.splits import TARGET, Columns


def as_stored(values: NDArray[Any]) -> NDArray[Any]:
    """The values in the type in which they are stored and models compute: 64-bit floats become 32-bit."""
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype != np.float64:
        return values
    with np.errstate(over="ignore"):  # infinite from here on, which the data checks find
        return values.astype(np.float32)


def row_hashes(columns: Columns, names: Iterable[str] | None = None) -> NDArray[np.str_]:
    """A hash per row over the named columns, by default all but the target; [rows] of 32 hex digits.

    Equal values of equal shape give equal hashes, whatever split they are in, before they are stored as after; 0 equals
    -0, and one missing number the other.
    """
    chosen = sorted(name for name in columns if name != TARGET) if names is None else list(names)
    arrays = [np.ascontiguousarray(_comparable(as_stored(columns[name]))) for name in chosen]
    rows = len(next(iter(columns.values())))
    digests = [hashlib.blake2b(digest_size=16) for _ in range(rows)]
    for name, array in zip(chosen, arrays, strict=True):
        head = f"{name}:{array.dtype.str}:{array.shape[1:]};".encode()
        flat = array.reshape(rows, -1)
        for digest, row in zip(digests, flat, strict=True):
            digest.update(head)
            digest.update(row.tobytes())
    return np.array([digest.hexdigest() for digest in digests], dtype=np.str_)


def _comparable(values: NDArray[Any]) -> NDArray[Any]:
    """The same with one pattern of bits for each value."""
    if values.dtype.kind != "f":
        return values
    values = values + values.dtype.type(0)  # -0.0 becomes 0.0
    values[np.isnan(values)] = np.nan
    return values
