"""Arrays as npz blobs in the store, without pickle."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_registry.manifest import FileEntry
from model_registry.store import Store

Array = NDArray[Any]


def publish_arrays(store: Store, path: str, **arrays: Array) -> FileEntry:
    """Store the arrays as one npz; equal arrays give an equal blob (numpy writes fixed time stamps)."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return store.publish_bytes(buffer.getvalue(), path)


def fetch_arrays(store: Store, entry: FileEntry) -> dict[str, Array]:
    """The arrays of an npz by name; raises like :meth:`Store.fetch`."""
    with np.load(io.BytesIO(store.fetch_bytes(entry)), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
