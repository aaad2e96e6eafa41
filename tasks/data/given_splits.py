"""What a workload gives: its splits, where their rows come from, and how they were understood."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tasks.readers.reading import Reading, listed
from tasks.readers.splitting import Divided
from tasks.running.errors import DataReadError
from tasks.running.splits import TARGET, Columns
from tasks.workloads.workload import Workload, as_arrays, own_partitions


@dataclass(frozen=True)
class GivenSplits:
    """``source_rows`` by split, as far as they are known."""

    splits: dict[str, Columns]
    source_rows: dict[str, NDArray[Any]]
    reading: Reading


def given_splits(workload: Workload) -> GivenSplits:
    """Ask the workload for all of it.

    Raises:
        DataReadError, WorkloadError: the data cannot be read, or is not what a workload must give.
    """
    given = _understood(workload, workload.user.splits(), "splits()")
    rows = {name: len(columns[TARGET]) for name, columns in given.splits.items()}
    return GivenSplits(given.splits, given.source_rows, given.reading + Reading(row_facts(rows, workload)))


def given_partitions(workload: Workload, folder: Path) -> Iterator[GivenSplits] | None:
    """Ask the workload for its splits in parts, without the splits that a part has no rows of; None: it has none.

    Args:
        folder: is made, for the workload's own files.

    Raises:
        DataReadError, WorkloadError: as :func:`given_splits`, when the part is taken.
    """
    folder.mkdir()
    parts = own_partitions(workload, folder)
    return None if parts is None else (_without_empty(_understood(workload, p, "partitions()")) for p in parts)


def _without_empty(given: GivenSplits) -> GivenSplits:
    splits = {name: columns for name, columns in given.splits.items() if len(columns[TARGET])}
    return replace(given, splits=splits)


def _understood(workload: Workload, given: Any, source: str) -> GivenSplits:
    try:
        splits = as_arrays(given, f"{workload.ref.path}.{source}")
    except ValueError as error:  # numpy's, for rows that cannot form one array
        if "inhomogeneous" not in str(error):
            raise
        raise DataReadError(
            f"{workload.ref.path}.{source} gives a column whose rows differ in shape ({error}); "
            "scale, cut or pad them to one shape"
        ) from error
    names, reading = (given.source_rows, given.reading) if isinstance(given, Divided) else ({}, Reading())
    # A user may have changed the splits since they were divided.
    known = {name: rows for name, rows in names.items() if len(rows) == len(splits[name][TARGET])}
    return GivenSplits(splits, known, reading)


def row_facts(rows: Mapping[str, int], workload: Workload) -> tuple[str, ...]:
    """How many rows and classes there are, in sentences."""
    counts = ", ".join(f"{name} {count}" for name, count in rows.items())
    labels = workload.labels()
    return (f"Rows: {counts}.", *((f"{len(labels)} classes: {listed(labels)}.",) if labels else ()))
