"""A wide table: 160 columns of which 40 tell something, and what they tell depends on one another."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import make_classification
from torch import Tensor, nn

from tasks.running.splits import Columns

ROWS = {"train": 50_000, "calibration": 1_000, "validation": 10_000, "test": 10_000}
COLUMNS, CLASSES = 160, 5


class WideTable:
    """One input ``columns`` [N, 160], float32.

    Args:
        rows: rows by split, where fewer are wanted than the benchmark's.
    """

    def __init__(self, rows: dict[str, int] | None = None) -> None:
        self.rows = {**ROWS, **(rows or {})}

    def splits(self) -> dict[str, Columns]:
        table, classes = _table(sum(self.rows.values()))
        made: dict[str, Columns] = {}
        start = 0
        for split, rows in self.rows.items():
            made[split] = {"columns": table[start : start + rows], "target": classes[start : start + rows]}
            start += rows
        return made

    def model(self, role: str) -> nn.Module:
        """The same network whatever the role: nothing can be scaled from outside."""
        return Perceptron(COLUMNS, CLASSES)


class Perceptron(nn.Module):
    """Dense layers of 1 024, 1 024 and 512 units."""

    def __init__(self, columns: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(columns, 1024), nn.BatchNorm1d(1024), nn.ReLU(), nn.Dropout(0.2)),
            *(nn.Linear(1024, 1024), nn.BatchNorm1d(1024), nn.ReLU(), nn.Dropout(0.2)),
            *(nn.Linear(1024, 512), nn.BatchNorm1d(512), nn.ReLU()),
            nn.Linear(512, classes),
        )

    def forward(self, columns: Tensor) -> Tensor:
        answer: Tensor = self.layers(columns)
        return answer


@cache
def _table(rows: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Eight clusters a class at corners of a cube, in 20 columns; 20 more are mixed from those, 120 are noise."""
    table, classes = make_classification(
        n_samples=rows,
        n_features=COLUMNS,
        n_informative=20,
        n_redundant=20,
        n_classes=CLASSES,
        n_clusters_per_class=8,
        class_sep=2.0,
        flip_y=0.0,
        random_state=0,
    )
    return table.astype(np.float32), classes.astype(np.int64)
