"""JSON lines: one JSON object per line (also gzipped)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from tasks.readers.arrow_columns import to_columns
from tasks.readers.reading import ReadColumns
from tasks.running.errors import DataReadError


def read_jsonl(path: Path, *, texts: Collection[str] = ()) -> ReadColumns:
    """Columns of a file with one JSON object per line; keys missing in a line are missing values.

    Raises:
        DataReadError: a line is no JSON object, a key changes its type, or there is no line.
    """
    import pyarrow as pa
    import pyarrow.json as pj

    try:
        with pa.input_stream(path) as stream:  # unpacks by the extension
            data = stream.read_buffer()
        if data.size == 0:
            raise DataReadError(f"{path} is empty; it must hold one JSON object per line")
        whole = pj.ReadOptions(block_size=min(data.size + 1, 2**31 - 1))  # one block: types are inferred from all lines
        table = pj.read_json(pa.BufferReader(data), read_options=whole)
    except (pa.ArrowException, OSError) as error:
        raise DataReadError(
            f"{path} cannot be read as JSON lines: {error}. Every line must be one JSON object, "
            "and a key must have the same type in all of them"
        ) from error
    return to_columns(table, path, texts=texts)
