"""Parquet files."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from tasks.readers.arrow_columns import to_columns
from tasks.readers.reading import ReadColumns
from tasks.running.errors import DataReadError


def read_parquet(path: Path, *, texts: Collection[str] = ()) -> ReadColumns:
    """Columns of a Parquet file; raises DataReadError where it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except pa.ArrowMemoryError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataReadError(
            f"{path} cannot be read as Parquet: {error}. Check that it was copied whole; "
            "a file of another kind needs its own extension"
        ) from error
    return to_columns(table, path, texts=texts)
