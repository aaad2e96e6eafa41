"""Arrow tables as numpy columns: what the table readers (CSV, Parquet, JSON lines) have in common."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.running.errors import DataReadError
from tasks.running.splits import Columns

if TYPE_CHECKING:
    import pyarrow as pa


def to_columns(table: pa.Table, path: Path) -> Columns:
    """Numpy columns [rows, ...] of an Arrow table.

    Numbers keep their type; a missing number makes its column float64 with NaN. Text, dates and times become
    fixed-width text, missing ones the empty text (the data checks count both as missing). Equal-length lists become
    one array [rows, length]. Object arrays never arise: they would need pickle on the way to the store.

    Raises:
        DataReadError: no rows, a column twice, lists of unequal length, or a type with no array form.
    """
    twice = [name for name, count in Counter(table.column_names).items() if count > 1]
    if twice:
        raise DataReadError(f"{path}: the columns {twice} are there more than once; give every column its own name")
    if table.num_rows == 0:
        raise DataReadError(f"{path} holds no rows, at least one is needed; check that the file is complete")
    return {name: _array(table.column(name), name, path) for name in table.column_names}


def _array(column: pa.ChunkedArray, name: str, path: Path) -> np.ndarray:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):  # pandas categoricals in Parquet
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    if pa.types.is_decimal(kind):
        column, kind = column.cast(pa.float64()), pa.float64()
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        if column.null_count:
            column = column.cast(pa.float64())
        return np.asarray(column.to_numpy())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array(["" if text is None else text for text in column.to_pylist()], dtype=np.str_)
    if pa.types.is_temporal(kind):
        return np.array(["" if moment is None else str(moment) for moment in column.to_pylist()], dtype=np.str_)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _stacked(column.to_pylist(), name, path)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise DataReadError(
            f"{path}: column {name!r} is not UTF-8 text; save the file as UTF-8, or leave the column out"
        )
    raise DataReadError(
        f"{path}: column {name!r} is of type {kind}, which has no array form; "
        "keep numbers, text, dates and lists of numbers"
    )


def _stacked(rows: list[list[object] | None], name: str, path: Path) -> np.ndarray:
    lengths = [-1 if row is None else len(row) for row in rows]
    odd = next((i for i, length in enumerate(lengths) if length != lengths[0]), None)
    if odd is not None or lengths[0] < 0:
        row = odd or 0
        raise DataReadError(
            f"{path}: column {name!r} holds {_length(lengths[row])} in row {row} and {_length(lengths[0])} in row 0; "
            "all rows must hold lists of the same length: pad or cut them"
        )
    try:
        array = np.asarray(rows, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataReadError(f"{path}: column {name!r} holds lists that are not numbers ({error})") from error
    whole = array.size > 0 and all(isinstance(value, int) for value in np.asarray(rows, dtype=object).flat)
    return array.astype(np.int64) if whole else array


def _length(length: int) -> str:
    return "nothing" if length < 0 else f"a list of {length}"
