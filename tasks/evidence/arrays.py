"""Arrays as npz blobs in the store, without pickle."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_registry.manifest import FileEntry
from model_registry.store import Store
from tasks.running.mapped_arrays import MAPPED_BYTES, fetch_columns

Array = NDArray[Any]


def publish_arrays(store: Store, path: str, **arrays: Array) -> FileEntry:
    """Store the arrays as one npz; equal arrays give an equal blob (numpy writes fixed time stamps)."""
    if sum(array.nbytes for array in arrays.values()) < MAPPED_BYTES:
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        return store.publish_bytes(buffer.getvalue(), path)
    with tempfile.TemporaryDirectory(prefix="winnow-arrays-") as folder:
        np.savez(Path(folder) / path, allow_pickle=False, **arrays)
        (entry,) = store.publish_folder(Path(folder))
    return entry


def fetch_arrays(store: Store, entry: FileEntry) -> dict[str, Array]:
    """The arrays of an npz by name, large ones mapped from disk; raises like :meth:`Store.fetch`."""
    return fetch_columns(store, entry)
