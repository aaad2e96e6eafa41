"""The content of rows as hashes: two rows with equal hashes are the same sample."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tasks.running.splits import TARGET, Columns


def row_hashes(columns: Columns, names: Iterable[str] | None = None) -> NDArray[np.str_]:
    """A hash per row over the named columns, by default all but the target; [rows] of 32 hex digits.

    Equal values of equal dtype and shape give equal hashes, whatever split they are in.
    """
    chosen = sorted(name for name in columns if name != TARGET) if names is None else list(names)
    arrays = [np.ascontiguousarray(columns[name]) for name in chosen]
    rows = len(next(iter(columns.values())))
    digests = [hashlib.blake2b(digest_size=16) for _ in range(rows)]
    for name, array in zip(chosen, arrays, strict=True):
        head = f"{name}:{array.dtype.str}:{array.shape[1:]};".encode()
        flat = array.reshape(rows, -1)
        for digest, row in zip(digests, flat, strict=True):
            digest.update(head)
            digest.update(row.tobytes())
    return np.array([digest.hexdigest() for digest in digests], dtype=np.str_)
