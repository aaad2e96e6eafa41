"""What a model learns from and is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model_registry.store import Store
from tasks.running.splits import Columns, DataRef, read_split
from tasks.workloads.workload import Workload


@dataclass(frozen=True)
class TrainingData:
    """Two splits, and the workload that says how their columns become inputs and targets and how answers are judged.

    ``train`` and ``validation``: columns by name, rows first.
    """

    workload: Workload
    train: Columns
    validation: Columns

    @classmethod
    def read(cls, store: Store, data: DataRef, workload: Workload, folder: Path | None = None) -> TrainingData:
        """The splits as they were checked. Large ones are mapped: each process reads the rows that it trains on.

        Args:
            folder: of the stage, where processes that train together share one copy of large splits.

        Raises:
            CorruptObject, ObjectMissing: as the store raises them.
        """
        train, validation = (read_split(store, data, name, folder) for name in ("train", "validation"))
        return cls(workload, train, validation)
