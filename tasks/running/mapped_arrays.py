"""Arrays of the store that may be larger than the memory: on disk, with the rows in memory that somebody looks at."""

from __future__ import annotations

import fcntl
import io
import json
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_registry.manifest import FileEntry
from model_registry.store import Store

MAPPED_BYTES = 16 << 20
"""Archives from this size on are mapped; smaller ones are read at once, without a file."""

_NAMES = "names.json"


def fetch_columns(store: Store, entry: FileEntry, folder: Path | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of an npz by name, verified against its hash: read if it is small, else mapped from files on disk.

    A mapped array is one like any other: what is written into it stays in this process (a private mapping). The
    operating system reads the parts that are touched, and forgets them when it needs the memory.

    Args:
        folder: where the files stay, for other processes that want them too: one of them fetches. None: they have no
            name and go with the arrays.

    Raises:
        CorruptObject, ObjectMissing: as :meth:`Store.fetch`.
    """
    if entry.size < MAPPED_BYTES:
        with np.load(io.BytesIO(store.fetch_bytes(entry)), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="winnow-arrays-") as passing:
            return _mapped(_unpack(store, entry, Path(passing)))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{entry.sha256}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        place = folder / entry.sha256
        return _mapped(place if (place / _NAMES).exists() else _unpack(store, entry, place))


def _unpack(store: Store, entry: FileEntry, place: Path) -> Path:
    """The archive's arrays as a file each: inside the archive they would not lie as their types want it."""
    place.mkdir(exist_ok=True)
    archive = store.fetch(entry, place / "whole.npz")
    names = []
    with zipfile.ZipFile(archive) as members:
        for number, member in enumerate(members.namelist()):
            with members.open(member) as source, (place / f"{number}.npy").open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            names.append(member.removesuffix(".npy"))
    archive.unlink()
    (place / _NAMES).write_text(json.dumps(names))  # last: now it is whole
    return place


def _mapped(place: Path) -> dict[str, NDArray[Any]]:
    names = json.loads((place / _NAMES).read_text())
    return {
        name: np.asarray(np.load(place / f"{number}.npy", mmap_mode="c", allow_pickle=False))
        for number, name in enumerate(names)
    }
