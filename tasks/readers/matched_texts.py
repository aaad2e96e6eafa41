"""Texts without labels, and queries that they answer, divided so that what matches stays in one split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.readers.kept_columns import Unlabelled
from tasks.readers.labelled_texts import Row
from tasks.readers.reading import ReadColumns, Reading
from tasks.readers.splitting import complete, split_columns
from tasks.running.errors import DataReadError
from tasks.running.splits import Columns

_GROUP, _NOTHING = "group", "nothing"


@dataclass(frozen=True)
class MatchedTexts:
    """Each text and each query of a split is a row, and is there once: first the texts, then the queries.

    ``matches``: by split, [rows]: the number, from 1, of the group that a text is in; of a query minus that number; 0
    where there are no queries. What pairs connect is one group, whose texts are what its queries look for.
    ``source_rows``: their numbers in the files; ``reading``: how those were understood.
    """

    texts: Mapping[str, list[Row]]
    matches: Mapping[str, NDArray[np.int64]]
    source_rows: Mapping[str, NDArray[Any]]
    reading: Reading


class _Table(NamedTuple):
    texts: list[str]
    queries: list[str] | None
    numbers: NDArray[np.intp]
    groups: NDArray[np.int64]


def divide_matches(
    tables: Mapping[str, Columns],
    text: str,
    query: str | None,
    *,
    seed: int,
    unlabelled: Unlabelled,
    names: Mapping[str, str],
) -> MatchedTexts:
    """Rows of tables by split, or of one called ``all``; splits that are missing are taken out of train.

    Args:
        text, query: names of the columns; of each row the query, if there is any, is answered by the text.
        unlabelled: what to do about rows without a text or a query.
        names: of the tables, for people.

    Raises:
        DataReadError: a column is missing, rows have no text or no query, or there are too few.
    """
    reading, read = Reading(), dict[str, _Table]()
    for split, table in tables.items():
        read[split], found = _rows(table, text, query, unlabelled=unlabelled, where=names[split])
        reading += found
    grouped: dict[str, Columns] = {
        split: {_GROUP: table.groups, _NOTHING: np.zeros(len(table.groups), np.int64)} for split, table in read.items()
    }
    if "all" in grouped:
        places = split_columns(grouped["all"], seed=seed, target=_NOTHING).source_rows
    else:
        places = complete(grouped, seed=seed, target=_NOTHING).source_rows
    chosen = {name: _distinct(read[name if name in read else next(iter(read))], rows) for name, rows in places.items()}
    return MatchedTexts(
        {name: texts for name, (texts, _, _) in chosen.items()},
        {name: matches for name, (_, matches, _) in chosen.items()},
        {name: numbers for name, (_, _, numbers) in chosen.items()},
        reading,
    )


def _rows(
    table: Columns, text: str, query: str | None, *, unlabelled: Unlabelled, where: str
) -> tuple[_Table, Reading]:
    columns = [text] if query is None else [text, query]
    absent = [name for name in columns if name not in table]
    if absent:
        raise DataReadError(
            f"the data ({where}) have no column {absent[0]!r}; they have {sorted(table)}; name one of them by `text` "
            "or `query`, or what separates the fields by `delimiter`"
        )
    reading = table.reading if isinstance(table, ReadColumns) else Reading()
    whole = np.ones(len(table[text]), np.bool_)
    for name in columns:
        whole &= np.array([bool(str(value).strip()) for value in table[name].tolist()], np.bool_)
    lost = int((~whole).sum())
    if lost:
        found = (
            f"{where}: {lost} of {len(whole)} rows (the first is row {int(np.argmin(whole))}) have nothing in "
            f"{' or '.join(map(repr, columns))}"
        )
        if unlabelled == "refuse" or not whole.any():
            raise DataReadError(f"{found}; fill it in, or leave these rows out by `unlabelled: drop`")
        reading += Reading(findings=(f"{found}; they were left out.",))
    numbers = np.flatnonzero(whole)
    texts = [str(value) for value in table[text][numbers].tolist()]
    queries = None if query is None else [str(value) for value in table[query][numbers].tolist()]
    return _Table(texts, queries, numbers, _groups(texts, queries)), reading


def _groups(texts: list[str], queries: list[str] | None) -> NDArray[np.int64]:
    """The number, from 1, of each row's group: rows that share a text or a query are in one."""
    above = dict[tuple[str, str], tuple[str, str]]()

    def top(node: tuple[str, str]) -> tuple[str, str]:
        while (parent := above.setdefault(node, node)) != node:
            above[node] = above[parent]  # halves the way of whoever comes next
            node = parent
        return node

    nodes = [("text", text) for text in texts]
    for node, query in zip(nodes, queries or (), strict=False):
        above[top(("query", query))] = top(node)
    numbers = dict[tuple[str, str], int]()
    return np.array([numbers.setdefault(top(node), len(numbers) + 1) for node in nodes], np.int64)


def _distinct(table: _Table, rows: NDArray[Any]) -> tuple[list[Row], NDArray[np.int64], NDArray[Any]]:
    """The texts and behind them the queries of these rows, each once; their matches; and their numbers in the file."""
    given = [(+1, table.texts)] if table.queries is None else [(+1, table.texts), (-1, table.queries)]
    found, matches, numbers = list[Row](), list[int](), list[int]()
    for sign, column in given:
        seen = set[str]()
        for row in rows.tolist():
            if column[row] not in seen:
                seen.add(column[row])
                found.append((column[row],))
                matches.append(sign * int(table.groups[row]) if table.queries is not None else 0)
                numbers.append(int(table.numbers[row]))
    return found, np.array(matches, np.int64), np.array(numbers, np.int64)
