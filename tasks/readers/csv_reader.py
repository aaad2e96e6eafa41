"""CSV files (also .tsv, also gzipped)."""

from __future__ import annotations

from pathlib import Path

from tasks.readers.arrow_columns import to_columns
from tasks.running.errors import DataReadError
from tasks.running.splits import Columns


def read_csv(path: Path, *, delimiter: str | None = None) -> Columns:
    """Columns of a UTF-8 CSV file whose first line names them. Types are inferred from all rows.

    Args:
        delimiter: what separates the fields; by default a tab for ``.tsv``, else a comma.

    Raises:
        DataReadError: not readable as CSV; names the file, the row where known, and what to do.
    """
    import pyarrow as pa
    import pyarrow.csv as pc

    if delimiter is None:
        delimiter = "\t" if ".tsv" in path.suffixes else ","
    try:
        table = pc.read_csv(
            path,
            # One block per file would infer types from everything; several could disagree, and arrow would refuse.
            read_options=pc.ReadOptions(block_size=max(1 << 20, min(_plain_size(path), (1 << 31) - 1))),
            parse_options=pc.ParseOptions(delimiter=delimiter),
            convert_options=pc.ConvertOptions(strings_can_be_null=True),
        )
    except (pa.ArrowException, OSError) as error:
        raise DataReadError(
            f"{path} cannot be read as CSV: {error}. It must be UTF-8 text, its first line the column names, "
            f"its fields separated by {delimiter!r} and as many in every line"
        ) from error
    return to_columns(table, path)


def _plain_size(path: Path) -> int:
    # Text rarely shrinks more than tenfold; a larger file is read in several blocks.
    return path.stat().st_size * (10 if path.suffix == ".gz" else 1) + 1
