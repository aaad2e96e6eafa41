"""Rows by what they hold, on disk: the same order and the same splits whatever files they came in.

A row goes into one of 256 buckets by the first byte of its hash; a bucket is sorted by itself. So what is held in
memory is a bucket, a 256th of the data, and equal rows are neighbours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[Any]
"""Structured [rows]: the fields of KEYS, and those of whoever keeps rows."""

KEYS = [("hash", "<u8"), ("draw", "<u8"), ("answer", "<u8"), ("row", "<i8")]
"""``hash`` and ``draw``: of the row's inputs. ``answer``: the hash of its target. ``row``: its number in the source."""

_COUNT = 256


class RowBuckets:
    """Rows of one type, appended in any order and read in that of their hashes."""

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        self._folder, self.dtype = folder, dtype
        folder.mkdir(parents=True)

    def add(self, rows: Rows) -> None:
        """Append rows."""
        bucket = (rows["hash"] >> np.uint64(56)).astype(np.intp)
        order = np.argsort(bucket, kind="stable")
        ends = np.searchsorted(bucket[order], np.arange(_COUNT + 1))
        for number in np.unique(bucket).tolist():
            with self._file(number).open("ab") as stream:
                stream.write(rows[order[ends[number] : ends[number + 1]]].tobytes())

    def sort(self) -> None:
        """Bring each bucket into its order, once all rows are there: by content, and equal rows as in the source."""
        for number in range(_COUNT):
            rows = self._read(number)
            if len(rows):
                keys = [rows[name] for name in ("row", "answer", "draw", "hash")]
                self._file(number).write_bytes(rows[np.lexsort(keys)].tobytes())

    def __iter__(self) -> Iterator[Rows]:
        """The buckets that have rows, in order."""
        return (rows for number in range(_COUNT) if len(rows := self._read(number)))

    def joined(self, size: int) -> Iterator[Rows]:
        """Neighbouring buckets as one, from ``size`` bytes on: partitions that follow from the rows alone."""
        held: list[Rows] = []
        for rows in self:
            held.append(rows)
            if sum(part.nbytes for part in held) >= size:
                yield np.concatenate(held)
                held = []
        if held:
            yield np.concatenate(held)

    def _read(self, number: int) -> Rows:
        file = self._file(number)
        return np.fromfile(file, self.dtype) if file.exists() else np.empty(0, self.dtype)

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:03}.rows"


def hash_rows(content: NDArray[np.uint8], seed: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Two independent hashes [rows] of each row's bytes [rows, bytes]; another seed gives other ones."""
    key = str(seed).encode()
    digests = b"".join(hashlib.blake2b(row, digest_size=16, key=key).digest() for row in np.ascontiguousarray(content))
    found = np.frombuffer(digests, "<u8").reshape(-1, 2)
    return found[:, 0], found[:, 1]


def hash_text(text: str) -> int:
    """64 bits of a text's hash."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def drawn_splits(draw: NDArray[np.uint64], fractions: Mapping[str, float]) -> dict[str, NDArray[np.intp]]:
    """Row numbers by split, ascending: a row's own hash decides, so no other row has a say in it.

    Args:
        draw: [rows], evenly distributed over 64 bits.
        fractions: share of the rows by split; they add up to 1, which is reached to some rows in a thousand.
    """
    ends = np.cumsum(list(fractions.values()))[:-1]
    place = np.searchsorted((ends * 2.0**64).astype(np.uint64), draw, side="right")
    return {name: np.flatnonzero(place == number) for number, name in enumerate(fractions)}
