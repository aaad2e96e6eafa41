"""Which reader reads a table: by the extension of its file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from tasks.readers.csv_reader import read_csv
from tasks.readers.jsonl_reader import read_jsonl
from tasks.readers.npz_reader import read_npz
from tasks.readers.parquet_reader import read_parquet
from tasks.readers.reading import ReadColumns
from tasks.readers.sources import local
from tasks.running.errors import DataReadError

READERS: dict[str, Callable[..., ReadColumns]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".npz": read_npz,
}


def read_table(
    source: str,
    *,
    delimiter: str | None = None,
    decimal: str | None = None,
    missing: Sequence[str] = (),
    texts: Collection[str] = (),
) -> ReadColumns:
    """Columns [rows, ...] of a CSV, Parquet, JSON lines or npz file, local or s3://; a dict of arrays.

    Args:
        source: a path or s3:// URI.
        delimiter: of CSV, what separates the fields; by default recognised.
        decimal: of CSV, ``.`` or ``,``; by default recognised.
        missing: of CSV, how a missing value is spelt besides the usual ways.
        texts: names of columns that are text whatever is in them, of any length: arrays of str objects, not of text of
            a fixed width; a missing one is the empty text, and a list of texts is its JSON. npz files hold text of a
            fixed width only.

    Raises:
        DataReadError: unknown extension, no such file, or not readable as what its extension says.
    """
    with local(source) as path:
        suffixes = path.suffixes
        extension = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == ".gz" else path.suffix
        reader = READERS.get(extension.lower())
        if reader is None or path.is_dir():
            raise DataReadError(
                f"{source}: no reader for {'a folder' if path.is_dir() else f'the extension {extension!r}'}; "
                f"tables are read from {', '.join(READERS)} (CSV and JSON lines also with .gz)"
            )
        if reader is read_csv:
            return read_csv(path, delimiter=delimiter, decimal=decimal, missing=missing, texts=texts)
        return reader(path) if reader is read_npz else reader(path, texts=texts)
