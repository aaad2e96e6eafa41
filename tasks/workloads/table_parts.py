"""A table in many files, larger than the memory: its splits a partition at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tasks.readers.kept_columns import Unlabelled, is_missing, keep_columns, labelled_rows, require_target
from tasks.readers.reading import Reading
from tasks.readers.row_buckets import drawn_splits
from tasks.readers.source_parts import read_blocks
from tasks.readers.splitting import FRACTIONS, Divided, in_one_part
from tasks.running.errors import DataReadError
from tasks.workloads.gathered_rows import GatheredRows
from tasks.workloads.table_facts import TableFacts, TableTask
from tasks.workloads.table_features import flat_columns

_PART_BYTES = 8 << 20
"""Rows that a partition holds at least, but for the last one."""


class TableParts:
    """The rows of all files, divided by what they hold.

    The hash of a row's inputs decides its split and its place there, so neither depends on the file it is in, on its
    place in it, or on other rows: one file or twenty give the same splits in the same order, and equal inputs are never
    in two splits. Categories, scales and classes are those of the train rows.

    Args:
        source: a pattern of files.
        The others as for :class:`tasks.workloads.tabular.Tabular`; ``form``: delimiter, decimal and missing.
    """

    def __init__(
        self,
        source: str,
        *,
        target: str,
        task: TableTask,
        drop: set[str],
        seed: int,
        unlabelled: Unlabelled,
        form: Mapping[str, Any],
    ) -> None:
        self.source, self.target, self.task, self.drop = source, target, task, drop
        self.seed, self.unlabelled, self.form = seed, unlabelled, form

    @cached_property
    def facts(self) -> TableFacts:
        """What all rows tell; reads all files once, unless it was given or :meth:`divided` has done so."""
        with tempfile.TemporaryDirectory(prefix="winnow-rows-") as folder:
            return self._gathered(Path(folder) / "rows").facts(self.task)

    def divided(self, folder: Path) -> Iterator[Divided]:
        """The splits, partition by partition; the first says how the files were understood. Rows of the source are
        counted through all files, in the order of their names.

        Args:
            folder: for the rows, which lie there until the last partition was taken.

        Raises:
            DataReadError: the files cannot be read, or do not fit each other.
        """
        gathered = self._gathered(folder / "rows")
        self.facts = gathered.facts(self.task)
        reading = gathered.reading
        for rows in gathered.buckets.joined(_PART_BYTES):
            chosen = {name: rows[places] for name, places in drawn_splits(rows["draw"], FRACTIONS).items()}
            splits = {name: gathered.encoded(part, self.facts) for name, part in chosen.items()}
            yield Divided(splits, {name: part["row"] for name, part in chosen.items()}, reading)
            reading = Reading()

    def whole(self) -> Divided:
        """All partitions in one, for those who have the memory."""
        return in_one_part(self.divided)

    def _gathered(self, folder: Path) -> GatheredRows:
        gathered: GatheredRows | None = None
        for block in read_blocks(self.source, **self.form):
            where = f"{block.name}, counted from its row {block.start}" if block.start else block.name
            require_target(block.columns, self.target, where=where)
            if self.unlabelled == "drop" and is_missing(block.columns[self.target]).all():
                continue
            table = keep_columns(block.columns, target=self.target, drop=self.drop, where=self.source)
            findings = table.reading.findings
            table, kept = labelled_rows(table, self.target, unlabelled=self.unlabelled, where=where)
            gathered = gathered or GatheredRows(folder, self.source, flat_columns(table, self.target), findings)
            gathered.add(flat_columns(table, self.target), table[self.target], kept, block, self.seed)
        if gathered is None:
            raise DataReadError(
                f"{self.source}: no row has a {self.target!r} to predict; there is nothing to learn from"
            )
        gathered.buckets.sort()
        return gathered
