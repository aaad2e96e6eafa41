"""Tables of texts, one for each split or one for all, as a workload's ``source`` names them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from tasks.readers.reading import ReadColumns
from tasks.readers.splitting import require_splits
from tasks.readers.tables import read_table

Source = str | Mapping[str, str]
"""One file, which is divided into splits, or a file per split."""


def read_split_tables(
    source: Source, *, delimiter: str | None = None, texts: Collection[str] = ()
) -> dict[str, ReadColumns]:
    """The columns as the files have them, by split, or all under ``all``; arguments as for :func:`read_table`.

    Raises:
        DataReadError: a split has no such name, or a file cannot be read.
    """
    if isinstance(source, str):
        return {"all": read_table(source, delimiter=delimiter, texts=texts)}
    require_splits(source)
    return {split: read_table(name, delimiter=delimiter, texts=texts) for split, name in source.items()}


def table_names(source: Source) -> dict[str, str]:
    """What people call the tables, by split."""
    if isinstance(source, str):
        return {"all": source}
    return {split: f"{name} ({split})" for split, name in source.items()}
