"""How a CSV file is written: what separates its fields, its decimal mark, how it spells a missing value."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.readers.reading import listed
from tasks.running.errors import DataReadError

if TYPE_CHECKING:
    import pyarrow as pa

DELIMITERS = (",", ";", "\t", "|")
_SAMPLE = 1 << 18
_NUMBER = r"\s*[-+]?(\d+{mark}?\d*|{mark}\d+)([eE][-+]?\d+)?\s*"
_THOUSANDS = re.compile(r"\s*[-+]?[1-9]\d{0,2}(,\d{3})+\s*")
_GAPS = ("?", "-", "--", ".", "*", "None", "none", "NONE", "<NA>", "NaT", "missing", "unknown")
"""What stands for a missing number besides Arrow's own spellings; in a column of text each is a text."""
_MOSTLY = 0.9


def recognise_delimiter(path: Path, usual: str) -> str:
    """What separates the fields in every line of the file's beginning; ``usual`` where nothing does.

    Raises:
        DataReadError: more than one could; says which.
    """
    text, whole = _beginning(path)
    fitting = [delimiter for delimiter in DELIMITERS if _divides(text, delimiter, whole=whole)]
    if len(fitting) > 1:
        raise DataReadError(
            f"{path}: its fields could be separated by {' or by '.join(map(repr, fitting))}, each divides all lines "
            "equally; name one by `delimiter`"
        )
    return fitting[0] if fitting else usual


def recognise_decimal_comma(table: pa.Table, path: Path) -> list[str]:
    """The columns that hold numbers with a decimal comma, of a table that was read with a decimal point.

    Raises:
        DataReadError: the commas may separate thousands as well.
    """
    columns = [name for name in table.column_names if _has_decimal_commas(table.column(name))]
    unsure = [name for name in columns if _all_match(_with(table.column(name), ","), _THOUSANDS.pattern)]
    if unsure and len(unsure) == len(columns):
        example = _with(table.column(unsure[0]), ",")[0].as_py().strip()
        raise DataReadError(
            f"{path}: column {unsure[0]!r} holds numbers such as {example}, whose comma may be a decimal mark or "
            "separate thousands; write `decimal: ','` for the one, save the file without it in the other case"
        )
    return columns


def fill_gaps(table: pa.Table, *, decimal: str) -> tuple[pa.Table, list[str]]:
    """Columns of numbers that were read as text because of a spelling of a missing value, as numbers.

    Returns:
        The table, and a sentence about each such column and each that was left as text though most of it are numbers.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    number = f"^{_NUMBER.replace('{mark}', re.escape(decimal))}$"
    found = []
    for place, name in enumerate(table.column_names):
        column = table.column(name)
        if not pa.types.is_string(column.type) or column.null_count == len(column):
            continue
        fits = pc.fill_null(pc.match_substring_regex(column, number), False)
        present, numbers = len(column) - column.null_count, pc.sum(fits).as_py() or 0
        others = pc.unique(pc.filter(column, pc.invert(fits)).drop_null()).to_pylist()
        if numbers and {text.strip() for text in others} <= set(_GAPS):
            values = pc.if_else(fits, pc.utf8_trim_whitespace(column), pa.scalar(None, pa.string()))
            table = table.set_column(place, name, _as_numbers(pc.replace_substring(values, decimal, ".")))
            found.append(
                f"column {name!r}: {listed(others)} was read as missing ({present - numbers} of {present} values)"
            )
        elif present > numbers >= _MOSTLY * present:
            found.append(
                f"column {name!r} was read as text because of {listed(others)}, though {numbers} of its {present} "
                "values are numbers; if they stand for missing values, name them by `missing`"
            )
    return table, found


def _as_numbers(text: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa

    try:
        return text.cast(pa.int64())
    except pa.ArrowInvalid:
        return text.cast(pa.float64())


def _beginning(path: Path) -> tuple[str, bool]:
    """The start of the file and whether that is all; nothing where it cannot be read, which its reader will say."""
    import pyarrow as pa

    try:
        with pa.input_stream(path) as stream:  # unpacks by the extension
            data: bytes = stream.read(_SAMPLE)
    except (pa.ArrowException, OSError):
        return "", True
    return data.decode("utf-8-sig", errors="replace"), len(data) < _SAMPLE


def _divides(text: str, delimiter: str, *, whole: bool) -> bool:
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    except csv.Error:
        return False
    widths = {len(row) for row in (rows if whole else rows[:-1])}
    return len(widths) == 1 and widths != {1}


def _has_decimal_commas(column: pa.ChunkedArray) -> bool:
    import pyarrow as pa

    if not pa.types.is_string(column.type) or column.null_count == len(column):
        return False
    number = f"^({_NUMBER.replace('{mark}', ',')}|{'|'.join(map(re.escape, _GAPS))})$"
    return len(_with(column, ",")) > 0 and _all_match(column.drop_null(), number)


def _with(column: pa.ChunkedArray, part: str) -> pa.ChunkedArray:
    import pyarrow.compute as pc

    column = column.drop_null()
    return column.filter(pc.match_substring(column, part))


def _all_match(column: pa.ChunkedArray, pattern: str) -> bool:
    import pyarrow.compute as pc

    return bool(pc.all(pc.match_substring_regex(column, f"^({pattern})$")).as_py())
