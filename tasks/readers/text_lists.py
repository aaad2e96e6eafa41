"""Lists of texts in a column: of JSON lines and Parquet as they are, of CSV divided by a separator."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.readers.reading import ReadColumns
from tasks.running.errors import DataReadError


def list_of(value: str) -> list[str]:
    """The texts of a list that a reader spelt as JSON."""
    found: list[str] = json.loads(value)
    return found


def with_lists(table: ReadColumns, column: str, *, separator: str | None, where: str) -> ReadColumns:
    """The table with JSON lists in that column, fixed-width text [rows]; '' where one is missing.

    Args:
        table: with the column among its ``texts``.
        separator: that divides texts into lists; None: the column holds lists already.
        where: the table for people.

    Raises:
        DataReadError: a row holds no list, and there is no separator.
    """
    if column not in table:
        return table  # whoever needs the column says so
    lists = [_listed(str(value), row, column, separator, where) for row, value in enumerate(table[column].tolist())]
    made: NDArray[Any] = np.array(lists, np.str_)
    return ReadColumns({**table, column: made}, table.reading, table.types)


def _listed(value: str, row: int, column: str, separator: str | None, where: str) -> str:
    if separator is not None:
        parts = [part.strip() for part in value.split(separator)]
        return json.dumps([part for part in parts if part], ensure_ascii=False)
    if value and not _is_list(value):
        raise DataReadError(
            f"column {column!r} of {where} holds {value[:60]!r} in row {row}, which is no list; give lists of texts in "
            "JSON lines or Parquet; labels that stand in one text are divided by `separator`"
        )
    return value


def _is_list(value: str) -> bool:
    try:
        found = json.loads(value)
    except ValueError:
        return False
    return isinstance(found, list) and all(isinstance(part, str) for part in found)
