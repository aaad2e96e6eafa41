"""Texts without labels, and queries that they answer, divided so that what matches stays in one split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
_ALIKE = "texts were left out: what the model reads of them is what it reads of others"
_ASKS_NOTHING = "queries were left out: what the model reads of them is what it reads of a text in their split"


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
    """``texts`` and ``queries`` of rows, and what the model reads of them: equal where it cannot tell two apart."""

    texts: list[str]
    queries: list[str] | None
    numbers: NDArray[np.intp]
    keys: list[bytes]
    query_keys: list[bytes]


def divide_matches(
    tables: Mapping[str, Columns],
    text: str,
    query: str | None,
    *,
    keys: Callable[[list[str]], list[bytes]],
    seed: int,
    unlabelled: Unlabelled,
    names: Mapping[str, str],
) -> MatchedTexts:
    """Rows of tables by split, or of one called ``all``; splits that are missing are taken out of train.

    Args:
        text, query: names of the columns; of each row the query, if there is any, is answered by the text.
        keys: what a model reads of each text: of those with an equal one the first stands for all.
        unlabelled: what to do about rows without a text or a query.
        names: of the tables, for people.

    Raises:
        DataReadError: a column is missing, rows have no text or no query, or there are too few.
    """
    reading, read = Reading(), dict[str, _Table]()
    for split, table in tables.items():
        read[split], found = _rows(table, text, query, keys=keys, unlabelled=unlabelled, where=names[split])
        reading += found
    groups = {split: _groups(table) for split, table in read.items()}
    grouped: dict[str, Columns] = {
        split: {_GROUP: numbers, _NOTHING: np.zeros(len(numbers), np.int64)} for split, numbers in groups.items()
    }
    if "all" in grouped:
        places = split_columns(grouped["all"], seed=seed, target=_NOTHING).source_rows
    else:
        places = complete(grouped, seed=seed, target=_NOTHING).source_rows
    of = {name: name if name in read else next(iter(read)) for name in places}
    chosen = {name: _distinct(read[of[name]], groups[of[name]], rows) for name, rows in places.items()}
    alike = sum(found.alike for found in chosen.values())
    more = (f"{alike} {_ALIKE if query is None else _ASKS_NOTHING}",) if alike else ()
    return MatchedTexts(
        {name: found.texts for name, found in chosen.items()},
        {name: found.matches for name, found in chosen.items()},
        {name: found.numbers for name, found in chosen.items()},
        reading + Reading(findings=more),
    )


def _rows(
    table: Columns,
    text: str,
    query: str | None,
    *,
    keys: Callable[[list[str]], list[bytes]],
    unlabelled: Unlabelled,
    where: str,
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
    return _Table(texts, queries, numbers, keys(texts), keys(queries or [])), reading


def _groups(table: _Table) -> NDArray[np.int64]:
    """The number, from 1, of each row's group: rows that share a text or a query are in one."""
    above = dict[bytes, bytes]()

    def top(node: bytes) -> bytes:
        while (parent := above.setdefault(node, node)) != node:
            above[node] = above[parent]  # halves the way of whoever comes next
            node = parent
        return node

    for text, query in zip(table.keys, table.query_keys, strict=False):
        above[top(query)] = top(text)
    numbers = dict[bytes, int]()
    return np.array([numbers.setdefault(top(text), len(numbers) + 1) for text in table.keys], np.int64)


class _Distinct(NamedTuple):
    """Rows of a split; ``alike``: how many were left out because others are all the same to the model."""

    texts: list[Row]
    matches: NDArray[np.int64]
    numbers: NDArray[Any]
    alike: int


def _distinct(table: _Table, groups: NDArray[np.int64], rows: NDArray[Any]) -> _Distinct:
    """The texts and behind them the queries of these rows, each once; queries that are texts themselves ask nothing."""
    texts = {table.keys[row]: row for row in reversed(rows.tolist())}
    asked = {table.query_keys[row]: row for row in reversed(rows.tolist())} if table.queries is not None else {}
    queries = [row for key, row in asked.items() if key not in texts]
    kept, answers = sorted(texts.values()), sorted(queries)
    found: list[Row] = [(table.texts[row],) for row in kept]
    found += [((table.queries or [])[row],) for row in answers]
    matches = np.concatenate([groups[kept], -groups[answers]]) if table.queries is not None else np.zeros(len(kept))
    alike = len(rows) - len(kept) if table.queries is None else len(asked) - len(answers)
    return _Distinct(found, matches.astype(np.int64), table.numbers[[*kept, *answers]], alike)
