"""Splits as bytes: npz without pickle, equal content in equal bytes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np

from tasks.readers.content import as_stored
from tasks.running.errors import DataReadError
from tasks.running.splits import TARGET, Columns

# A zip entry carries a time; the earliest there is keeps the bytes the same from run to run.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def storable(splits: dict[str, Columns]) -> dict[str, Columns]:
    """The splits in the types that models compute in: 64-bit floats become 32-bit, boolean targets 0 and 1.

    Raises:
        DataReadError: a column holds Python objects or text, or no values; names all such columns.
    """
    empty = [
        f"{split}.{name} {v.shape}" for split, columns in splits.items() for name, v in columns.items() if not v.size
    ]
    if empty:
        raise DataReadError(f"these columns hold no values: {', '.join(empty)}; every split needs rows")
    wrong = [
        f"column {column!r} of {split} holds {'text' if values.dtype.kind in 'USO' else values.dtype}"
        for split, columns in splits.items()
        for column, values in columns.items()
        if values.dtype.kind not in "biuf"
    ]
    if wrong:
        raise DataReadError(
            f"splits must hold numbers: {'; '.join(wrong)}; give classes as integers from 0 "
            "(their names in labels()), encode or leave out other text"
        )
    return {
        split: {column: _typed(values, column) for column, values in columns.items()}
        for split, columns in splits.items()
    }


def npz_bytes(columns: Columns) -> bytes:
    """An npz archive of the columns that depends on nothing but names, types, shapes and values."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(columns):
            values = np.ascontiguousarray(columns[name])
            with npy_member(archive, name, values.dtype, values.shape) as stream:
                stream.write(values.data)
    return buffer.getvalue()


@contextmanager
def npy_member(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> Iterator[IO[bytes]]:
    """A member for an array of that type and shape, its header written; what is left is the values in C order."""
    info = zipfile.ZipInfo(f"{name}.npy", date_time=_EPOCH)
    head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(info, "w", force_zip64=True) as stream:
        np.lib.format.write_array_header_1_0(stream, head)
        yield stream


def lacks_values(values: np.ndarray) -> bool:
    """Whether a column is NaN somewhere."""
    return values.dtype.kind == "f" and bool(np.isnan(values).any())


def _typed(values: np.ndarray, column: str) -> np.ndarray:
    stored: np.ndarray = as_stored(values)
    return stored.astype(np.int64) if stored.dtype == np.bool_ and column == TARGET else stored
