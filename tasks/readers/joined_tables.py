"""The files that a pattern names as one table, in memory, with the columns that are asked for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.readers.kept_columns import is_missing
from tasks.readers.reading import ReadColumns, Reading, kinds_sentence, listed
from tasks.readers.source_parts import part_names
from tasks.readers.tables import read_table
from tasks.running.errors import DataReadError

_SPOKEN = {"U": "text", "O": "text", "b": "true or false", "i": "whole numbers", "u": "whole numbers", "f": "numbers"}


def read_joined_tables(
    source: str, *, delimiter: str | None = None, texts: Collection[str] = (), others: Collection[str] = ()
) -> ReadColumns:
    """Rows in the order of the files' names, as one file would have them; other columns are left out.

    Args:
        source: a pattern of files as :func:`read_table` reads them.
        texts: columns of texts, as for :func:`read_table`. ``others``: further columns.

    Raises:
        DataReadError: a file cannot be read, lacks a column, or holds another kind of values in it.
    """
    files = {name: read_table(name, delimiter=delimiter, texts=texts) for name in part_names(source)}
    wanted = list(dict.fromkeys((*texts, *others)))
    for name, table in files.items():
        lacking = [column for column in wanted if column not in table]
        if lacking:
            raise DataReadError(
                f"{name} has no column {listed(lacking)}; it has {listed(table)}: all files of {source} need the "
                f"columns {listed(wanted)}"
            )
    columns, types = dict[str, NDArray[Any]](), dict[str, str]()
    for column in wanted:
        kept = {name: (table[column], table.types.get(column)) for name, table in files.items()}
        columns[column], kind = _joined(kept, column)
        if kind is not None:
            types[column] = kind
    rows = len(columns[wanted[0]])
    kinds = {name: _SPOKEN.get(values.dtype.kind, str(values.dtype)) for name, values in columns.items()}
    fact = f"{source}: {len(files)} file{'s' * (len(files) != 1)}, {rows} rows. {kinds_sentence(kinds)}"
    findings = Reading(findings=tuple(finding for table in files.values() for finding in table.reading.findings))
    return ReadColumns(columns, Reading((fact,)) + findings, types)


def _joined(files: dict[str, tuple[NDArray[Any], str | None]], column: str) -> tuple[NDArray[Any], str | None]:
    """One column of all files, and its type where missing values made float64 of another."""
    first, found, gaps = "", dict[str, np.dtype[Any]](), False
    for name, (values, kind) in files.items():
        if values.dtype.kind == "f" and kind is None and is_missing(values).all():
            gaps = True  # nothing in it, which may be of any kind
            continue
        first, gaps = first or name, gaps or kind is not None
        found[name] = np.dtype(kind) if kind is not None else values.dtype
        here, there = (_SPOKEN.get(dtype.kind, str(dtype)) for dtype in (found[name], found[first]))
        if here != there:
            raise DataReadError(
                f"{name} holds {here} in column {column!r}, and {first} {there}; make it the same in all files"
            )
    if found and found[first].kind in "UO":
        return np.concatenate([v if v.dtype.kind in "UO" else np.full(len(v), "") for v, _ in files.values()]), None
    whole = np.concatenate([values for values, _ in files.values()])
    return whole, str(np.result_type(*found.values())) if gaps and found else None
