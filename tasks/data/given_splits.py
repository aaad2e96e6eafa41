"""What a workload gives: its splits, where their rows come from, and how they were understood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from tasks.readers.reading import Reading, listed
from tasks.readers.splitting import Divided
from tasks.running.errors import DataReadError
from tasks.running.splits import TARGET, Columns
from tasks.workloads.workload import Workload


@dataclass(frozen=True)
class GivenSplits:
    """``source_rows`` by split, as far as they are known."""

    splits: dict[str, Columns]
    source_rows: dict[str, NDArray[Any]]
    reading: Reading


def given_splits(workload: Workload) -> GivenSplits:
    """Ask the workload.

    Raises:
        DataReadError, WorkloadError: the data cannot be read, or is not what a workload must give.
    """
    given = workload.user.splits()
    try:
        splits = Workload(_Given(given), workload.ref).splits()
    except ValueError as error:  # numpy's, for rows that cannot form one array
        if "inhomogeneous" not in str(error):
            raise
        raise DataReadError(
            f"{workload.ref.path}.splits() gives a column whose rows differ in shape ({error}); "
            "scale, cut or pad them to one shape"
        ) from error
    source, reading = (given.source_rows, given.reading) if isinstance(given, Divided) else ({}, Reading())
    # A user may have changed the splits since they were divided.
    known = {name: rows for name, rows in source.items() if len(rows) == len(splits[name][TARGET])}
    return GivenSplits(splits, known, reading + Reading(_facts(splits, workload)))


@dataclass(frozen=True)
class _Given:
    """A workload whose splits are there already: they are read once and then looked at by Workload."""

    value: Any

    def splits(self) -> Any:
        return self.value


def _facts(splits: dict[str, Columns], workload: Workload) -> tuple[str, ...]:
    rows = ", ".join(f"{name} {len(columns[TARGET])}" for name, columns in splits.items())
    labels = workload.labels()
    return (f"Rows: {rows}.", *((f"{len(labels)} classes: {listed(labels)}.",) if labels else ()))
