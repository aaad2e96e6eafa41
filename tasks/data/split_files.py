"""Splits that grow on disk, partition by partition, and become the very files that whole splits become."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.data.materialise import lacks_values, npy_member
from tasks.running.errors import DataReadError
from tasks.running.splits import TARGET, Columns

_COPIED = 1 << 20


class SplitFiles:
    """Columns of all splits, a file each, in a folder of their own.

    Attributes:
        parts: per partition, its rows [first, last) of each split that it has rows of.
        missing: columns that are NaN somewhere in train.
    """

    def __init__(self, folder: Path) -> None:
        self.parts: list[dict[str, tuple[int, int]]] = []
        self.missing: set[str] = set()
        self._folder = folder
        self._kinds: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        self._rows: dict[str, int] = {}
        folder.mkdir(parents=True)

    def add(self, splits: Mapping[str, Columns], source_rows: Mapping[str, NDArray[Any]]) -> None:
        """Append a partition's rows; where they come from, if they have numbers in the source, is kept beside them.

        Raises:
            DataReadError: its columns are not those of the partitions before, or of another type or shape.
        """
        part = {}
        for split, columns in splits.items():
            kinds = {name: (values.dtype, values.shape[1:]) for name, values in columns.items()}
            self._kinds = self._kinds or kinds
            if kinds != self._kinds:
                raise DataReadError(
                    f"partition {len(self.parts)} has the columns {_told(kinds)} in {split}, those before have "
                    f"{_told(self._kinds)}; give all partitions the same columns, types and shapes"
                )
            for name, values in columns.items():
                with self._file(split, name).open("ab") as stream:
                    stream.write(np.ascontiguousarray(values).data)
                if split == "train" and lacks_values(values):
                    self.missing.add(name)
            numbers = np.asarray(source_rows[split]) if split in source_rows else np.empty(0)
            if numbers.dtype.kind in "iu":
                with self._source(split).open("ab") as stream:
                    stream.write(numbers.astype(np.int64).data)
            first = self._rows.get(split, 0)
            self._rows[split] = first + len(columns[TARGET])
            part[split] = (first, self._rows[split])
        self.parts.append(part)

    @property
    def rows(self) -> dict[str, int]:
        """Of each split."""
        return dict(self._rows)

    def slices(self, split: str, first: int = 0, last: int | None = None) -> Columns:
        """Rows [first, last) of a split, of the files themselves: read where they are looked at, not to be written."""
        last = self._rows[split] if last is None else last
        found: Columns = {}
        for name, (dtype, shape) in self._kinds.items():
            size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            file = self._file(split, name)
            found[name] = np.asarray(
                np.memmap(file, dtype, mode="r", offset=first * size, shape=(last - first, *shape))
            )
        return found

    def source_rows(self, split: str, first: int, last: int) -> NDArray[np.int64] | None:
        """The numbers that rows [first, last) of a split have in the source; None where they are not known of all."""
        file = self._source(split)
        if not file.exists() or file.stat().st_size != 8 * self._rows[split]:
            return None
        return np.fromfile(file, np.int64, count=last - first, offset=8 * first)

    def write_npz(self, split: str, archive: Path) -> Path:
        """The split as one file, byte for byte that of :func:`tasks.data.materialise.npz_bytes`; its columns go."""
        archive.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as members:
            for name in sorted(self._kinds):
                dtype, shape = self._kinds[name]
                whole = (self._rows[split], *shape)
                with npy_member(members, name, dtype, whole) as target, self._file(split, name).open("rb") as source:
                    shutil.copyfileobj(source, target, _COPIED)
                self._file(split, name).unlink()  # the disk need not hold it twice
        return archive

    def _source(self, split: str) -> Path:
        return self._folder / f"{split}.source"

    def _file(self, split: str, name: str) -> Path:
        return self._folder / f"{split}.{sorted(self._kinds).index(name)}.rows"


def _told(kinds: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {dtype.name}{list(shape)}" for name, (dtype, shape) in sorted(kinds.items()))
