"""Rows of a Parquet file as a model's inputs, and its outputs as rows: one batch in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model_registry.datatypes import NUMPY_NAMES
from model_registry.variant import TensorSpec
from tasks.running.errors import DataReadError

Arrays = Mapping[str, np.ndarray[Any, Any]]
Answer = Callable[[Arrays], Arrays]


def answer_file(
    source: Path,
    target: Path,
    answer: Answer,
    inputs: Sequence[TensorSpec],
    *,
    batch: int,
    keep: Sequence[str],
    label: str,
) -> int:
    """Answer each row of a Parquet file, in its order; the number of rows.

    Args:
        target: a new Parquet file: the columns of ``keep``, then a column for each output.
        answer: from inputs [rows, ...] by name to outputs.
        label: what the file is called in messages.

    Raises:
        DataReadError: the file is no Parquet, or its columns are not the model's inputs.
    """
    try:
        file = pq.ParquetFile(source)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataReadError(f"{label} is no Parquet file that can be read: {error}") from error
    columns = _columns(file.schema_arrow, inputs, keep, label)
    rows, writer = 0, None
    try:
        for table in _batches(file, [*columns, *keep], batch):
            outputs = answer(_feeds(table, columns, inputs, label))
            whole = pa.table(
                {name: table.column(name) for name in keep}
                | {name: _as_column(values, table.num_rows, name) for name, values in outputs.items()}
            )
            writer = writer or pq.ParquetWriter(target, whole.schema, compression="zstd")
            writer.write_table(whole)
            rows += table.num_rows
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise DataReadError(f"{label} holds no rows")
    return rows


def _batches(file: pq.ParquetFile, columns: list[str], batch: int) -> Iterator[pa.Table]:
    """Tables of ``batch`` rows counted from the file's first, whatever its row groups are."""
    for part in file.iter_batches(batch_size=batch, columns=list(dict.fromkeys(columns))):
        yield pa.Table.from_batches([part])


def _columns(schema: pa.Schema, inputs: Sequence[TensorSpec], keep: Sequence[str], label: str) -> list[str]:
    """The columns to read: one for each input, or all but those kept, in their order, for the one input of a table."""
    there = list(schema.names)
    unknown = [name for name in keep if name not in there]
    if unknown:
        raise DataReadError(f"{label} has no column {unknown[0]!r} to keep; it has {there}")
    wanted = [spec.name for spec in inputs]
    if set(wanted) <= set(there):
        return wanted
    others = [name for name in there if name not in keep]
    if len(inputs) == 1 and inputs[0].shape[1:] == (len(others),):
        return others
    shapes = {spec.name: list(spec.shape[1:]) for spec in inputs}
    raise DataReadError(
        f"{label} has the columns {there}, and the model's inputs are {shapes}: name a column for each input (lists "
        "for those of several values), or give as many columns as the one input has values; --keep leaves columns out"
    )


def _feeds(table: pa.Table, columns: Sequence[str], inputs: Sequence[TensorSpec], label: str) -> Arrays:
    if columns == [spec.name for spec in inputs]:
        return {spec.name: _array(table.column(spec.name), spec, table.num_rows, label) for spec in inputs}
    (only,) = inputs
    return {only.name: np.stack([_values(table.column(name), only, name, label) for name in columns], axis=1)}


def _array(column: pa.ChunkedArray, spec: TensorSpec, rows: int, label: str) -> np.ndarray[Any, Any]:
    """A column of numbers or (nested, fixed or variable) lists as [rows, ...]."""
    flat = column.combine_chunks()
    while pa.types.is_list(flat.type) or pa.types.is_large_list(flat.type) or pa.types.is_fixed_size_list(flat.type):
        flat = flat.flatten()
    values = _values(flat, spec, spec.name, label)
    shape = spec.shape[1:]
    if -1 not in shape and values.size != rows * math.prod(shape):
        raise DataReadError(
            f"{label}, column {spec.name!r}: {rows} rows hold {values.size} values, and a row of the input has "
            f"{math.prod(shape)} {list(shape)}"
        )
    return values.reshape(rows, *shape)


def _values(column: Any, spec: TensorSpec, name: str, label: str) -> np.ndarray[Any, Any]:
    if spec.datatype == "BYTES":
        return np.array(column.to_pylist(), object)
    try:
        values = column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()
        typed: np.ndarray[Any, Any] = values.astype(NUMPY_NAMES[spec.datatype], copy=False)
        return typed
    except (ValueError, TypeError) as error:
        raise DataReadError(f"{label}, column {name!r} does not hold {spec.datatype}: {error}") from error


def _as_column(values: np.ndarray[Any, Any], rows: int, name: str) -> pa.Array:
    """An output [rows, ...] as a column: numbers, texts, or lists of them."""
    if len(values) != rows:
        raise DataReadError(
            f"output {name!r} answers {len(values)} rows to {rows}; such a model cannot be asked in batches"
        )
    if values.dtype == object:
        texts = [v.decode() if isinstance(v, bytes) else v for v in values.ravel().tolist()]
        flat: Any = pa.array(texts)
    else:
        flat = pa.array(values.ravel())
    for size in reversed(values.shape[1:]):
        flat = pa.FixedSizeListArray.from_arrays(flat, size)
    return flat
