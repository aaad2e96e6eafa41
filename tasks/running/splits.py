"""The checked data as a value: splits lie in the store, and every stage reads them from there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model_registry.manifest import FileEntry
from model_registry.store import Store
from model_registry.variant import Frozen, TensorSpec
from tasks.running.mapped_arrays import fetch_columns
from tasks.running.task_kind import TaskKind

Columns = dict[str, NDArray[np.generic]]
"""One split: equal-length arrays by column name; ``target`` is the target."""

SPLITS = ("train", "calibration", "validation", "test")
TARGET = "target"


class ColumnSpec(Frozen):
    """dtype (numpy name) and per-sample shape of one column; ``missing``: some values of train are NaN."""

    dtype: str
    shape: tuple[int, ...]
    missing: bool = False


class SplitRef(Frozen):
    """One split in the store: an npz without pickle."""

    name: str
    file: FileEntry
    rows: int


class MetricRef(Frozen):
    """The workload's metric. ``builtin`` ones are computed without loading the workload."""

    name: str
    better: Literal["higher", "lower"]
    builtin: bool


class LanguageRef(Frozen):
    """Of texts that a language model continues: the questions with several answers that it is asked, if any, as an npz
    of :class:`tasks.workloads.choice_questions.ChoiceRows`, and how many they are."""

    questions: FileEntry | None = None
    count: int = 0


class DataRef(Frozen):
    """Data that passed its checks. ``fingerprint`` is the hash of the splits' content.

    ``task`` and ``metric`` are what the targets alone say until a model has been asked (see tasks/rehearse).
    """

    fingerprint: str
    splits: tuple[SplitRef, ...]
    columns: dict[str, ColumnSpec]
    task: TaskKind
    metric: MetricRef
    labels: tuple[str, ...] | None = None
    language: LanguageRef | None = None
    """None where the model does not continue text."""
    known: dict[str, Any] | None = None
    """What the workload learned from all rows and its models need; None where it looks at its data itself."""

    def split(self, name: str) -> SplitRef:
        """The split of that name; KeyError names those there are."""
        for split in self.splits:
            if split.name == name:
                return split
        raise KeyError(f"no split {name!r}; there are {[s.name for s in self.splits]}")

    def inputs_with_gaps(self, inputs: Iterable[TensorSpec]) -> list[str]:
        """Names of the inputs that lack values in train, where they are columns of the splits."""
        return [spec.name for spec in inputs if spec.name in self.columns and self.columns[spec.name].missing]


def read_split(store: Store, data: DataRef, name: str, folder: Path | None = None) -> Columns:
    """The arrays of a split, verified against its hash; large ones are mapped, see :func:`fetch_columns`.

    Args:
        folder: where the files of a large split stay for other processes of the stage; None: they go with the arrays.

    Raises:
        CorruptObject, ObjectMissing: as the store raises them.
    """
    return fetch_columns(store, data.split(name).file, folder)
