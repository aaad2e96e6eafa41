"""Texts and their labels: read from tables, and divided into splits with equal texts always together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.readers.kept_columns import Unlabelled, labelled_rows
from tasks.readers.reading import ReadColumns, Reading
from tasks.readers.splitting import complete, split_columns
from tasks.running.errors import DataReadError
from tasks.running.splits import SPLITS, Columns

Row = tuple[str, ...]
"""One text, or the two of a pair."""
_HASH = "hash"


@dataclass(frozen=True)
class LabelledTexts:
    """``texts`` and ``labels`` of each split, ``source_rows``: their numbers in the files; ``reading``: how those were
    understood."""

    texts: Mapping[str, list[Row]]
    labels: Mapping[str, list[str]]
    source_rows: Mapping[str, NDArray[Any]]
    reading: Reading


def divide_texts(
    tables: Mapping[str, Columns],
    columns: tuple[str, ...],
    target: str,
    *,
    seed: int,
    unlabelled: Unlabelled,
    names: Mapping[str, str],
) -> LabelledTexts:
    """Texts and labels of tables by split, or of one called ``all``; splits that are missing are taken out of train.

    Args:
        columns: of the texts, one or two.
        names: of the tables, for people.

    Raises:
        DataReadError: a column is missing, the target holds fractions, rows have no label, or there are too few.
    """
    texts, labels, numbers, reading = (
        dict[str, list[Row]](),
        dict[str, list[str]](),
        dict[str, NDArray[Any]](),
        Reading(),
    )
    for split, table in tables.items():
        kept, numbers[split] = rows_of_texts(table, columns, target, unlabelled=unlabelled, where=names[split])
        texts[split] = list(zip(*(map(str, kept[name].tolist()) for name in columns), strict=True))
        labels[split] = [str(value) for value in kept[target].tolist()]
        reading += kept.reading
    hashed: dict[str, Columns] = {
        split: {_HASH: hash_texts(rows), target: np.array(labels[split], np.str_)} for split, rows in texts.items()
    }
    if "all" in hashed:
        places = split_columns(hashed["all"], seed=seed, target=target).source_rows
    else:
        places = complete(hashed, seed=seed, target=target).source_rows
    found = {name: (name if name in texts else next(iter(texts)), rows) for name, rows in places.items()}
    return LabelledTexts(
        {name: [texts[table][row] for row in rows] for name, (table, rows) in found.items()},
        {name: [labels[table][row] for row in rows] for name, (table, rows) in found.items()},
        {name: numbers[table][rows] for name, (table, rows) in found.items()},
        reading,
    )


def only_one_split(
    tokens: Mapping[str, NDArray[np.int64]], texts: Mapping[str, list[Row]]
) -> dict[str, NDArray[np.bool_]]:
    """Rows to keep by split, so that texts of other wording with the same tokens are in one split only.

    The test split keeps its rows, then validation, calibration, train. Equal texts stay: whoever brings files per split
    has to know of them.
    """
    seen, kept = dict[bytes, Row](), dict[str, NDArray[np.bool_]]()
    for split in reversed(SPLITS):
        keys = [row.tobytes() for row in tokens[split]]
        rows = zip(keys, texts[split], strict=True)
        kept[split] = np.array([key not in seen or seen[key] == text for key, text in rows], np.bool_)
        seen.update(zip(keys, texts[split], strict=True))
    return {split: kept[split] for split in tokens}


def rows_of_texts(
    table: Columns, columns: tuple[str, ...], target: str, *, unlabelled: Unlabelled, where: str
) -> tuple[ReadColumns, NDArray[np.intp]]:
    """The rows of a table that have a label, and their numbers in it.

    Raises:
        DataReadError: a column is missing, the target holds fractions or lists, or rows have no label.
    """
    absent = [name for name in (*columns, target) if name not in table]
    if absent:
        raise DataReadError(
            f"the data ({where}) have no column {absent[0]!r}; they have {sorted(table)}; name one of them by `text`, "
            "`pair` or `target`, or what separates the fields by `delimiter`"
        )
    if table[target].dtype.kind == "O":
        raise DataReadError(
            f"column {target!r} of {where} holds lists; a class is text or a whole number. For several labels a text "
            "the workload is winnow:TextLabels, for a tag for each word winnow:TextTags"
        )
    if not isinstance(table, ReadColumns):
        table = ReadColumns(table, Reading())
    kind = np.dtype(table.types.get(target, table[target].dtype))  # missing ones have made floats of whole numbers
    if kind.kind not in "Uiub":
        raise DataReadError(f"column {target!r} of {where} holds {kind}; a class is text or a whole number")
    return labelled_rows(table, target, unlabelled=unlabelled, where=where)


def hash_texts(rows: list[Row]) -> NDArray[np.uint8]:
    """[rows, 16]: equal texts have equal ones."""
    digests = (hashlib.blake2b("\0".join(row).encode(errors="replace"), digest_size=16).digest() for row in rows)
    return np.frombuffer(b"".join(digests), np.uint8).reshape(len(rows), 16)
