"""JSON lines: one JSON object per line (also gzipped)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
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

    with _refusing(path), pa.input_stream(path) as stream:  # unpacks by the extension
        data = stream.read()
    return read_lines(data, path, texts=texts)


def read_lines(
    data: bytes, path: Path, *, texts: Collection[str] = (), columns: Collection[str] | None = None
) -> ReadColumns:
    """The same of some lines of the file; ``columns``: that are wanted, if not all."""
    import pyarrow as pa
    import pyarrow.json as pj

    if not data:
        raise DataReadError(f"{path} is empty; it must hold one JSON object per line")
    with _refusing(path):
        whole = pj.ReadOptions(block_size=min(len(data) + 1, 2**31 - 1))  # one block: types are inferred from all lines
        table = pj.read_json(pa.BufferReader(data), read_options=whole)
    if columns is not None and set(columns) & set(table.column_names):
        table = table.select([name for name in table.column_names if name in columns])
    return to_columns(table, path, texts=texts)


def line_blocks(path: Path, size: int) -> Iterator[bytes]:
    """Whole lines of a file, also a gzipped one, about ``size`` bytes at a time; a longer line is a block by itself."""
    import pyarrow as pa

    with _refusing(path), pa.input_stream(path) as stream:
        held, chunk, some = b"", stream.read(size), False
        while chunk:
            after = stream.read(size)
            lines, _, held = (held + chunk).rpartition(b"\n") if after else (held + chunk, b"", b"")
            if lines.strip():
                some = True
                yield lines
            chunk = after
        if not some:
            yield b""


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except pa.ArrowMemoryError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataReadError(
            f"{path} cannot be read as JSON lines: {error}. Every line must be one JSON object, "
            "and a key must have the same type in all of them"
        ) from error
