"""A source in parts: the files that a pattern names, one after another, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.readers.arrow_columns import to_columns
from tasks.readers.jsonl_reader import line_blocks, read_lines
from tasks.readers.reading import ReadColumns, listed
from tasks.readers.sources import is_pattern, local, matching
from tasks.readers.tables import read_table
from tasks.running.errors import DataReadError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class RowBlock:
    """Neighbouring rows of one file.

    Attributes:
        name: of the file.
        start: the number of the first row in it. ``first``: among the rows of all files.
    """

    name: str
    start: int
    first: int
    columns: ReadColumns

    @property
    def rows(self) -> int:
        return len(next(iter(self.columns.values())))


def in_parts(source: object) -> bool:
    """Whether a source is a pattern, such as ``s3://bucket/shards/*.parquet``."""
    return isinstance(source, str) and is_pattern(source)


def part_names(source: str) -> list[str]:
    """The files of a pattern, local paths or s3:// URIs, sorted; DataReadError where it names none."""
    found = matching(source)
    if not found:
        raise DataReadError(
            f"{source} names no file; the star stands for any part of a file's name, in the last part of the path"
        )
    return found


def read_blocks(
    source: str,
    *,
    delimiter: str | None = None,
    decimal: str | None = None,
    missing: Sequence[str] = (),
    texts: Collection[str] = (),
    columns: Sequence[str] | None = None,
) -> Iterator[RowBlock]:
    """The rows of all files in the order of their names; arguments as for :func:`read_table`.

    Parquet is read some rows at a time, and so are JSON lines of which the columns are named; a file of another kind is
    one block, so it must fit the memory. A file in S3 lies on the disk while it is read.

    Args:
        columns: that are needed, where they are known; a block may have more.

    Raises:
        DataReadError: a file cannot be read.
    """
    before = 0
    for name in part_names(source):
        start = 0
        if name.lower().endswith(".parquet"):
            blocks = _parquet_blocks(name, texts, columns)
        elif columns is not None and name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson")):
            blocks = _line_blocks(name, texts, columns)
        else:
            blocks = iter([read_table(name, delimiter=delimiter, decimal=decimal, missing=missing, texts=texts)])
        for found in blocks:
            lacking = sorted(set(columns or ()) - set(found))
            if lacking:
                raise DataReadError(
                    f"{name} has no column {listed(lacking)}; it has {listed(found)}: all files of {source} need the "
                    f"columns {listed(columns or ())}"
                )
            block = RowBlock(name, start, before + start, found)
            yield block
            start += block.rows
        before += start


def parquet_tables(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a Parquet file, some megabytes at a time.

    Args:
        columns: that are read; None: all.

    Raises:
        DataReadError: it cannot be read, has no rows, or lacks one of the columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            if not file.metadata.num_rows:
                raise DataReadError(f"{path} holds no rows, at least one is needed; check that the file is complete")
            lacking = sorted(set(columns or ()) - set(file.schema_arrow.names))
            if lacking:
                raise DataReadError(f"{path} has no column {listed(lacking)}; it has {listed(file.schema_arrow.names)}")
            for batch in file.iter_batches(batch_size=_block_rows(file), columns=columns):
                yield pa.Table.from_batches([batch])
    except pa.ArrowMemoryError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataReadError(
            f"{path} cannot be read as Parquet: {error}. Check that it was copied whole; "
            "a file of another kind needs its own extension"
        ) from error


def _parquet_blocks(source: str, texts: Collection[str], columns: Sequence[str] | None) -> Iterator[ReadColumns]:
    with local(source) as path:
        for table in parquet_tables(path, columns):
            yield to_columns(table, path, texts=texts)


def _line_blocks(source: str, texts: Collection[str], columns: Sequence[str]) -> Iterator[ReadColumns]:
    """Of JSON lines. A column that none of a block's lines has was in the file before: it is missing there."""
    with local(source) as path:
        known: ReadColumns | None = None
        for lines in line_blocks(path, _BLOCK_BYTES):
            found = read_lines(lines, path, texts=texts, columns=columns)
            if known is not None:
                rows = len(next(iter(found.values())))
                for name in set(columns) & set(known) - set(found):
                    found[name] = np.full(rows, "", known[name].dtype if known[name].dtype.kind == "O" else "U1")
            known = known or found
            yield found


def _block_rows(file: pq.ParquetFile) -> int:
    group = file.metadata.row_group(0)
    return max(16, int(_BLOCK_BYTES * group.num_rows // max(group.total_byte_size, 1)))
