"""Texts without labels: a folder of text files, a text file, or a column of a table; divided into splits by text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np

from tasks.readers.reading import Reading
from tasks.readers.source_parts import part_names
from tasks.readers.sources import is_pattern, local
from tasks.readers.splitting import complete, split_columns
from tasks.readers.tables import READERS, read_table
from tasks.running.errors import DataReadError
from tasks.running.splits import SPLITS, TARGET, Columns

TEXT_FILES = (".txt", ".md", ".rst", ".py")
_LEAST = 8
"""Texts of which splits can be made."""


def read_documents(source: str, *, column: str = "text", files: Sequence[str] = TEXT_FILES) -> list[str]:
    """Texts, in the order of their files' names or of their rows; equal ones once, empty ones not.

    Args:
        source: a folder of text files, one text file, a table (CSV, Parquet, JSON lines), or a pattern of such files,
            local or s3://.
        column: of a table, the one that holds the texts.
        files: of a folder, the ends of the names of its text files.

    Raises:
        DataReadError: nothing of that name, or no text in it.
    """
    texts = [text for name in _names(source) for text in _texts(name, column, files)]
    kept = list(dict.fromkeys(text for text in texts if text.strip()))
    if not kept:
        raise DataReadError(f"{source} holds no text (files {', '.join(files)}, or a table with texts)")
    return kept


class DividedDocuments:
    """Texts by split, read and divided when they are asked for.

    Args:
        read: see :func:`divide_documents`.
        seed: of the division.
    """

    def __init__(self, read: Callable[[], Mapping[str, Sequence[str]]], *, seed: int) -> None:
        self._read, self._seed = read, seed

    @property
    def texts(self) -> dict[str, list[str]]:
        return self._divided[0]

    @property
    def reading(self) -> Reading:
        """How they were understood."""
        return self._divided[1]

    @cached_property
    def _divided(self) -> tuple[dict[str, list[str]], Reading]:
        return divide_documents(self._read(), seed=self._seed)


def _names(source: str) -> list[str]:
    return part_names(source) if is_pattern(source) else [source]


def _texts(source: str, column: str, files: Sequence[str]) -> list[str]:
    with local(source) as path:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix in files and file.is_file())
            return [file.read_bytes().decode(errors="replace") for file in found]
        if path.suffix in files:
            return [path.read_bytes().decode(errors="replace")]
    if any(source.endswith((end, f"{end}.gz")) for end in READERS):
        table = read_table(source, texts=(column,))
        if column not in table:
            raise DataReadError(f"{source} has no column {column!r}; it has {sorted(table)}")
        return [str(text) for text in table[column].tolist()]
    raise DataReadError(f"{source} is neither a folder, nor a file {', '.join(files)}, nor a table")


def divide_documents(documents: Mapping[str, Sequence[str]], *, seed: int) -> tuple[dict[str, list[str]], Reading]:
    """Texts by split, of texts by split or all under ``all``; splits that are missing are taken out of train.

    Raises:
        DataReadError: there are too few.
    """
    hashed: dict[str, Columns] = {
        name: {
            "hash": np.array([hashlib.blake2b(text.encode(errors="replace")).hexdigest()[:16] for text in texts]),
            TARGET: np.zeros(len(texts), np.int64),
        }
        for name, texts in documents.items()
    }
    count = sum(map(len, documents.values()))
    if count < _LEAST:
        raise DataReadError(
            f"{count} texts are too few to divide into {', '.join(SPLITS)}: a text is in one split as a whole. Bring "
            f"at least {_LEAST}, as files in a folder or rows of a table, or a source per split"
        )
    if "all" in hashed:
        places = split_columns(hashed["all"], seed=seed).source_rows
    else:
        places = complete(hashed, seed=seed).source_rows
    whole = next(iter(documents))
    found = {split: [documents.get(split, documents[whole])[row] for row in rows] for split, rows in places.items()}
    counts = ", ".join(f"{len(texts)} in {split}" for split, texts in found.items())
    return found, Reading(facts=(f"{count} texts: {counts}.",))
