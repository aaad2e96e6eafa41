"""Tables of texts, one for each split or one for all, as a workload's ``source`` names them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from tasks.readers.joined_tables import read_joined_tables
from tasks.readers.reading import ReadColumns
from tasks.readers.sources import is_pattern
from tasks.readers.splitting import require_splits
from tasks.readers.tables import read_table

Source = str | Mapping[str, str]
"""One file or a pattern of files, which is divided into splits, or one of these per split."""


def read_split_tables(
    source: Source, *, delimiter: str | None = None, texts: Collection[str] = (), others: Collection[str] = ()
) -> dict[str, ReadColumns]:
    """The columns as the files have them, by split, or all under ``all``; arguments as for :func:`read_table`.

    Args:
        others: columns that are needed besides ``texts``: of several files no further ones are read.

    Raises:
        DataReadError: a split has no such name, a file cannot be read, or does not fit those before.
    """

    def read(name: str) -> ReadColumns:
        if is_pattern(name):
            return read_joined_tables(name, delimiter=delimiter, texts=texts, others=others)
        return read_table(name, delimiter=delimiter, texts=texts)

    if isinstance(source, str):
        return {"all": read(source)}
    require_splits(source)
    return {split: read(name) for split, name in source.items()}


def table_names(source: Source) -> dict[str, str]:
    """What people call the tables, by split."""
    if isinstance(source, str):
        return {"all": source}
    return {split: f"{name} ({split})" for split, name in source.items()}
