"""Arrow tables as numpy columns: what the table readers (CSV, Parquet, JSON lines) have in common."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.readers.reading import ReadColumns, Reading, counts_text, kinds_sentence
from tasks.running.errors import DataReadError

if TYPE_CHECKING:
    import pyarrow as pa

_A_DAY = {"D": 1, "s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}


def to_columns(
    table: pa.Table, path: Path, reading: Reading | None = None, *, texts: Collection[str] = ()
) -> ReadColumns:
    """Numpy columns [rows, ...] of an Arrow table.

    Numbers keep their type; a missing number makes its column float64 with NaN. Dates and times become days since
    1970-01-01 (in UTC where they have a zone), times of the day and durations days: float64, NaN where missing. Text
    becomes fixed-width text, missing ones the empty text (the data checks count both as missing). Equal-length lists
    become one array [rows, length] of the numbers' type. Object arrays arise for ``texts`` alone, of which whoever asks
    for them makes numbers (they would need pickle on the way to the store), and beside them for lists of any length.
    ``reading``: what is known of the file besides its columns.

    Raises:
        DataReadError: no rows, a column twice, lists of unequal length, or a type with no array form.
    """
    require_unique_names(table, path)
    if table.num_rows == 0:
        raise DataReadError(f"{path} holds no rows, at least one is needed; check that the file is complete")
    columns = {
        name: _texts(table.column(name), name, path)
        if name in texts or (texts and _is_list(table.column(name).type))
        else _array(table.column(name), name, path)
        for name in table.column_names
    }
    types = {
        name: str(np.dtype(table.column(name).type.to_pandas_dtype()))
        for name in columns
        if _is_number(table.column(name).type) and table.column(name).null_count
    }
    return ReadColumns(columns, Reading(_facts(table, columns, path)) + (reading or Reading()), types)


def require_unique_names(table: pa.Table, path: Path) -> None:
    """DataReadError where a column is there twice."""
    twice = [name for name, count in Counter(table.column_names).items() if count > 1]
    if twice:
        raise DataReadError(f"{path}: the columns {twice} are there more than once; give every column its own name")


def _facts(table: pa.Table, columns: dict[str, np.ndarray], path: Path) -> tuple[str, ...]:
    kinds = {name: _kind(table.column(name).type, values) for name, values in columns.items()}
    facts = [f"{path.name}: {table.num_rows} rows. {kinds_sentence(kinds)}"]
    gaps = {name: table.column(name).null_count for name in columns if table.column(name).null_count}
    if gaps:
        facts.append(f"{path.name}: missing values: {counts_text(gaps)}.")
    return tuple(facts)


def _kind(kind: pa.DataType, values: np.ndarray) -> str:
    import pyarrow as pa

    if values.ndim > 1:
        return f"lists of {' x '.join(map(str, values.shape[1:]))} numbers"
    if pa.types.is_temporal(kind):
        return "dates and times, as days since 1970-01-01" if _is_moment(kind) else "times, in days"
    if pa.types.is_boolean(kind):
        return "true or false"
    return "text" if values.dtype.kind in "UO" else "whole numbers" if pa.types.is_integer(kind) else "numbers"


def _array(column: pa.ChunkedArray, name: str, path: Path) -> np.ndarray:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):  # pandas categoricals in Parquet
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    if pa.types.is_decimal(kind):
        column, kind = column.cast(pa.float64()), pa.float64()
    if _is_number(kind):
        return _numbers(column.combine_chunks(), name, path)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array(["" if text is None else text for text in column.to_pylist()], dtype=np.str_)
    if pa.types.is_temporal(kind):
        return _days(column)
    if _is_list(kind):
        return _stacked(column.combine_chunks(), name, path)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise DataReadError(
            f"{path}: column {name!r} is not UTF-8 text; save the file as UTF-8, or leave the column out"
        )
    raise DataReadError(
        f"{path}: column {name!r} is of type {kind}, which has no array form; "
        "keep numbers, text, dates and lists of numbers"
    )


def _texts(column: pa.ChunkedArray, name: str, path: Path) -> np.ndarray:
    """Texts of any length [rows], str objects; numbers as they are spelt in JSON, and lists of texts as JSON."""
    import pyarrow as pa

    if _is_list(column.type):
        return _lists(column, name, path)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        try:
            column = column.cast(pa.string())
        except pa.ArrowMemoryError:
            raise
        except pa.ArrowException as error:
            raise DataReadError(f"{path}: column {name!r} is of type {column.type}, which is no text") from error
    found = np.empty(len(column), object)
    found[:] = ["" if text is None else text for text in column.to_pylist()]
    return found


def _lists(column: pa.ChunkedArray, name: str, path: Path) -> np.ndarray:
    """Each list of texts or numbers as JSON; the empty text where there is none."""
    found = np.empty(len(column), object)
    for row, value in enumerate(column.to_pylist()):
        odd = [part for part in value or () if not isinstance(part, str | int | float)]
        if odd:
            raise DataReadError(
                f"{path}: column {name!r} holds a list with {'nothing' if odd[0] is None else repr(odd[0])} in it, in "
                f"row {row}; a list holds texts, each of them given"
            )
        texts = [part if isinstance(part, str) else json.dumps(part) for part in value or ()]
        found[row] = "" if value is None else json.dumps(texts, ensure_ascii=False)
    return found


def _is_number(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_moment(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_date(kind) or pa.types.is_timestamp(kind))


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _days(column: pa.ChunkedArray) -> np.ndarray:
    """Moments, times of the day or durations in days. Numbers, not text: a model must place a day it has not seen."""
    import pyarrow as pa

    kind = column.type
    unit = "D" if pa.types.is_date32(kind) else "ms" if pa.types.is_date64(kind) else kind.unit
    column = column.cast(pa.int32() if kind.bit_width == 32 else pa.int64()).cast(pa.int64())
    whole: np.ndarray = column.fill_null(0).to_numpy().astype(np.float64)
    whole[column.is_null().to_numpy()] = np.nan
    return whole / _A_DAY[unit]


def _numbers(values: pa.Array, name: str, path: Path) -> np.ndarray:
    import pyarrow as pa

    if values.null_count:
        try:
            values = values.cast(pa.float64())
        except pa.ArrowInvalid as error:
            raise DataReadError(
                f"{path}: column {name!r} lacks values, which makes it float64, and holds numbers that float64 would "
                f"round ({error}); fill the missing ones, or save the column as text"
            ) from error
    return np.asarray(values.to_numpy(zero_copy_only=False))


def _stacked(lists: pa.Array, name: str, path: Path) -> np.ndarray:
    """Lists of one length, of lists or of numbers, as [rows, length, ...] of the numbers' type."""
    import pyarrow as pa
    import pyarrow.compute as pc

    shape = [len(lists)]
    while _is_list(lists.type):
        lengths = np.asarray(pc.list_value_length(lists).fill_null(-1))
        odd = int(np.argmax(lengths != lengths[0])) if len(lengths) else 0
        if len(lengths) and (odd or lengths[0] < 0):
            row = odd // math.prod(shape[1:])
            raise DataReadError(
                f"{path}: column {name!r} holds {_length(lengths[odd])} in row {row} and {_length(lengths[0])} in "
                "row 0; all rows must hold lists of the same length: pad or cut them"
            )
        shape.append(int(lengths[0]) if len(lengths) else 0)
        lists = lists.flatten()
    if pa.types.is_null(lists.type):  # nothing in any list
        return np.full(shape, np.nan)
    if not _is_number(lists.type):
        raise DataReadError(f"{path}: column {name!r} holds lists of {lists.type}, which are not numbers")
    return _numbers(lists, name, path).reshape(shape)


def _length(length: int) -> str:
    return "nothing" if length < 0 else f"a list of {length}"
