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


def joined_words(table: ReadColumns, words: str, tags: str, *, where: str) -> ReadColumns:
    """The table with texts in place of lists of words, a space between two; both columns hold lists as JSON.

    Raises:
        DataReadError: a word is empty or has a space in it, or a row has not as many tags as words.
    """
    if words not in table or tags not in table:
        return table  # whoever needs the columns says so
    texts = np.empty(len(table[words]), object)
    for row, (ours, theirs) in enumerate(zip(table[words].tolist(), table[tags].tolist(), strict=True)):
        found = list_of(ours) if ours else []
        odd = [word for word in found if word.split() != [word]]
        if odd:
            raise DataReadError(
                f"column {words!r} of {where} has {odd[0]!r} for a word in row {row}; a word is not empty and has no "
                "space in it, because spaces divide the words of a text that the endpoint is sent: leave it out with "
                "its tag, or make several words of it"
            )
        if theirs and len(list_of(theirs)) != len(found):
            raise DataReadError(
                f"row {row} of {where} has {len(found)} words in {words!r} and {len(list_of(theirs))} tags in "
                f"{tags!r}; each word needs a tag"
            )
        texts[row] = " ".join(found)
    empty = [
        row
        for row, (text, tag) in enumerate(zip(texts.tolist(), table[tags].tolist(), strict=True))
        if tag and not text
    ]
    if empty:
        raise DataReadError(f"row {empty[0]} of {where} has no words in {words!r}; leave it out")
    return ReadColumns({**table, words: texts}, table.reading, table.types)
