"""CSV files (also .tsv, also gzipped)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.readers.arrow_columns import require_unique_names, to_columns
from tasks.readers.csv_form import fill_gaps, recognise_decimal_comma, recognise_delimiter
from tasks.readers.reading import ReadColumns, Reading, listed
from tasks.running.errors import DataReadError

if TYPE_CHECKING:
    import pyarrow as pa


def read_csv(
    path: Path,
    *,
    delimiter: str | None = None,
    decimal: str | None = None,
    missing: Sequence[str] = (),
    texts: Collection[str] = (),
) -> ReadColumns:
    """Columns of a UTF-8 CSV file whose first line names them. Types are inferred from all rows.

    Args:
        delimiter: what separates the fields; by default what of ``,``, ``;``, tab and ``|`` divides every line equally.
        decimal: ``.`` or ``,``; by default recognised.
        missing: how a missing value is spelt, besides the empty text, ``NA``, ``N/A``, ``NaN``, ``null`` and the like;
            ``?``, ``-``, ``None`` and a few more are recognised between numbers.
        texts: see :func:`tasks.readers.tables.read_table`; only where there are some may a field hold several lines.

    Raises:
        DataReadError: not readable as CSV, or in more than one way; names the file, the row where known, and what to
            do.
    """
    if decimal not in (None, ".", ","):
        raise DataReadError(f"decimal {decimal!r} must be '.' or ','")
    usual = "\t" if ".tsv" in path.suffixes else ","
    separator = recognise_delimiter(path, usual) if delimiter is None else delimiter
    table, mark = _parse(path, separator, decimal or ".", missing, texts), decimal or "."
    if decimal is None and (commas := recognise_decimal_comma(table, path)):
        table, mark = _with_commas(path, separator, missing, texts, table, commas), ","
    table, gaps = fill_gaps(table, decimal=mark)
    said = f"{path.name}: fields separated by {separator!r}, decimal mark {mark!r}."
    return to_columns(table, path, Reading((said,), tuple(f"{path.name}: {gap}" for gap in gaps)), texts=texts)


def _with_commas(
    path: Path, separator: str, missing: Sequence[str], texts: Collection[str], points: pa.Table, commas: list[str]
) -> pa.Table:
    """The file read with a decimal comma."""
    import pyarrow as pa

    table = _parse(path, separator, ",", missing, texts)
    lost = [
        name
        for name in table.column_names
        if pa.types.is_floating(points.column(name).type) and pa.types.is_string(table.column(name).type)
    ]
    if lost:
        raise DataReadError(
            f"{path}: the decimal mark is a comma in {listed(commas)} and a point in {listed(lost)}; save the file "
            "with one of them, or say by `decimal` which it is: the other columns are then text"
        )
    return table


def _parse(path: Path, delimiter: str, decimal: str, missing: Sequence[str], texts: Collection[str]) -> pa.Table:
    import pyarrow as pa
    import pyarrow.csv as pc

    convert = pc.ConvertOptions(strings_can_be_null=True, decimal_point=decimal)
    convert.null_values = [*convert.null_values, *missing]
    convert.column_types = dict.fromkeys(texts, pa.string())
    try:
        table = pc.read_csv(
            path,
            # One block per file would infer types from everything; several could disagree, and arrow would refuse.
            read_options=pc.ReadOptions(block_size=max(1 << 20, min(_plain_size(path), (1 << 31) - 1))),
            parse_options=pc.ParseOptions(delimiter=delimiter, newlines_in_values=bool(texts)),
            convert_options=convert,
        )
    except pa.ArrowMemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataReadError(
            f"{path} cannot be read as CSV: {error}. It must be UTF-8 text, its first line the column names, "
            f"its fields separated by {delimiter!r} (or another `delimiter`) and as many in every line"
        ) from error
    require_unique_names(table, path)
    return table


def _plain_size(path: Path) -> int:
    # Text rarely shrinks more than tenfold; a larger file is read in several blocks.
    return path.stat().st_size * (10 if path.suffix == ".gz" else 1) + 1
