"""What the train rows of a table in parts tell, as far as models and requests need it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model_registry.variant import Frozen
from tasks.readers.row_buckets import Rows, drawn_splits
from tasks.readers.splitting import FRACTIONS
from tasks.running.errors import DataReadError
from tasks.workloads.table_features import ColumnScale, TableFeatures

TableTask = Literal["auto", "classification", "regression"]
MAX_INTEGER_CLASSES = 100
"""Whole numbers of which there are more are predicted as numbers."""


class TableFacts(Frozen):
    """Plain JSON, so that whoever trains need not read all rows again."""

    names: tuple[str, ...]
    categories: dict[str, tuple[str, ...]]
    texts: dict[str, tuple[str, ...]]
    """Of every text column all texts by their numbers, those of train first."""
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    classes: tuple[str, ...] | None
    """None: the target is a number to predict."""
    target_mean: float = 0.0
    target_deviation: float = 1.0

    @property
    def target_scale(self) -> ColumnScale:
        return ColumnScale(np.array([self.target_mean]), np.array([self.target_deviation]))


class KnownFeatures(TableFeatures):
    """Features of a table whose rows were looked at before."""

    def __init__(self, facts: TableFacts) -> None:
        super().__init__({}, "")
        self.names = list(facts.names)
        self.categories = {name: list(texts) for name, texts in facts.categories.items()}
        self.texts = {name: list(texts) for name, texts in facts.texts.items()}
        self.scale = ColumnScale(np.array(facts.mean), np.array(facts.deviation))


class TrainTally:
    """What is counted over the train rows, bucket by bucket: sums have the same bits whatever files rows came in.

    Args:
        task: as the workload has it. ``texts``, ``whole``: whether targets are texts or whole numbers.
        most: classes that there may be.
    """

    def __init__(self, task: TableTask, *, texts: bool, whole: bool, most: int) -> None:
        self.rows = dict.fromkeys(FRACTIONS, 0)
        self.targets: set[float] = set()
        self.codes: set[tuple[int, int]] = set()
        """Text columns and the numbers of the texts that train has there, by place."""
        self.is_class = task == "classification" or (task == "auto" and (texts or whole))
        self._limit = MAX_INTEGER_CLASSES if task == "auto" and not texts else None
        self._most = most

    def scales(self, buckets: Iterable[Rows]) -> tuple[ColumnScale, ColumnScale]:
        """Means and deviations of the numbers and of the target; ``buckets`` can be gone through twice.

        Raises:
            DataReadError: there are too many classes.
        """
        count, total = np.zeros(1), np.zeros(1)
        for rows in buckets:
            places = drawn_splits(rows["draw"], FRACTIONS)
            self.rows = {name: self.rows[name] + len(places[name]) for name in FRACTIONS}
            train = rows[places["train"]]
            self._look(train)
            values = _side_by_side(train)
            count = count + np.isfinite(values).sum(axis=0)
            total = total + np.nansum(values, axis=0)
        mean = total / np.maximum(count, 1)
        squares = np.zeros(len(mean))
        for rows in buckets:
            train = rows[drawn_splits(rows["draw"], FRACTIONS)["train"]]
            squares += np.nansum((_side_by_side(train) - mean) ** 2, axis=0)
        deviation = np.sqrt(squares / np.maximum(count, 1))
        deviation = np.where(deviation > 0, deviation, 1.0)
        return ColumnScale(mean[:-1], deviation[:-1]), ColumnScale(mean[-1:], deviation[-1:])

    def _look(self, train: Rows) -> None:
        for place in range(train["codes"].shape[1]):
            self.codes |= {(place, code) for code in np.unique(train["codes"][:, place]).tolist()}
        if not self.is_class:
            return
        self.targets |= set(np.unique(train["target"]).tolist())
        if self._limit is not None and len(self.targets) > self._limit:
            self.is_class = False
        elif len(self.targets) > self._most:
            raise DataReadError(
                f"the target has more than {self._most} classes in train; predict it as a number, or join classes"
            )


def _side_by_side(train: Rows) -> NDArray[Any]:
    """Numbers and target, [rows, numbers + 1]."""
    values: NDArray[Any] = np.concatenate([train["numbers"], train["target"][:, None]], axis=1)
    return values
