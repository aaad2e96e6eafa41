"""What of a table is looked at: without what identifies its rows, and without rows that have no target."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tasks.readers.reading import ReadColumns, Reading, listed, rows_text
from tasks.running.errors import DataReadError
from tasks.running.splits import Columns

Unlabelled = Literal["refuse", "drop"]
_NAMELESS = re.compile(r"|Unnamed: \d+|__index_level_\d+__")
"""What pandas calls an index without a name, in CSV, when it reads that again, and in Parquet."""


def keep_columns(columns: Columns, *, target: str, drop: Collection[str], where: str) -> ReadColumns:
    """The table without the columns in ``drop`` and without an index that pandas or R wrote.

    Raises:
        DataReadError: ``drop`` names no column, one has neither a name nor the look of an index, or none is
            left besides the target.
    """
    unknown = sorted(set(drop) - set(columns))
    if unknown:
        raise DataReadError(f"drop names {unknown}, which the data ({where}) do not have; they have {sorted(columns)}")
    facts = (f"{where}: left out as asked: {listed(sorted(drop))}.",) if drop else ()
    findings = []
    left = set(drop)
    for name, values in columns.items():
        if name in left or name == target or not _NAMELESS.fullmatch(name):
            continue
        if not _is_index(values):
            raise DataReadError(
                f"{where}: a column has no name ({name!r}) and is no index, its first values are "
                f"{listed(map(str, values[:3].tolist()))}; name it in the file, or leave it out: drop: [{name!r}]"
            )
        left.add(name)
        findings.append(
            f"{where}: the column {name!r} is an index of the rows, as pandas writes it, and was left out; to keep it, "
            "give it a name in the file"
        )
    kept = {name: values for name, values in columns.items() if name not in left}
    if not set(kept) - {target}:
        raise DataReadError(
            f"the data ({where}) have no column besides the target {target!r}; there is nothing to learn from"
        )
    reading, types = (columns.reading, columns.types) if isinstance(columns, ReadColumns) else (Reading(), {})
    return ReadColumns(kept, reading + Reading(facts, tuple(findings)), types)


def require_target(columns: Columns, target: str, *, where: str) -> None:
    """DataReadError where the data have no such column, or one of lists."""
    if target not in columns:
        raise DataReadError(
            f"the data ({where}) has no column {target!r} to predict; it has {sorted(columns)}; "
            "name one of them by `target`, or what separates the fields by `delimiter`"
        )
    if columns[target].ndim != 1:
        raise DataReadError(f"column {target!r} holds lists; the target must be one value per row")


def labelled_rows(
    table: ReadColumns, target: str, *, unlabelled: Unlabelled, where: str
) -> tuple[ReadColumns, NDArray[np.intp]]:
    """The rows that have a target, and their numbers in the table.

    Raises:
        DataReadError: some have none, and they are not to be dropped; none has one.
    """
    values = table[target]
    empty = is_missing(values)
    rows = np.flatnonzero(~empty)
    if len(rows) == len(values):
        return table, rows
    found = f"{where}: {rows_text(np.flatnonzero(empty).tolist())} of {len(values)} have no {target!r} to predict"
    if unlabelled == "refuse" or not len(rows):
        raise DataReadError(f"{found}; fill it in, or leave these rows out by `unlabelled: drop`")
    kept = {name: column[rows] for name, column in table.items()}
    # A missing value had made floats of whole numbers, and of true and false.
    kept[target] = kept[target].astype(table.types.get(target, kept[target].dtype))
    return ReadColumns(kept, table.reading + Reading(findings=(f"{found}; they were left out.",)), table.types), rows


def is_missing(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a column [rows] holds nothing: NaN or infinity, or a text without any letter."""
    if values.dtype.kind == "f":
        return np.asarray(~np.isfinite(values))
    if values.dtype.kind == "U":
        return np.asarray(np.char.strip(values) == "", dtype=np.bool_)
    return np.zeros(len(values), dtype=bool)


def _is_index(values: NDArray[Any]) -> bool:
    """Whole numbers, names that are all different, or nothing at all (an empty last column)."""
    if values.ndim > 1:
        return False
    different = len(np.unique(values)) == len(values)
    return values.dtype.kind in "iu" or (values.dtype.kind == "U" and different) or bool(is_missing(values).all())
