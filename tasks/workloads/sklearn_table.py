"""The small tables that come with scikit-learn, to try things on without a download."""

from __future__ import annotations

from typing import Literal

import numpy as np

from tasks.running.splits import TARGET, Columns
from tasks.workloads.tabular import Tabular


class SklearnTable(Tabular):
    """A table of scikit-learn as a :class:`Tabular`: one input ``features``, FP32 [N, columns].

    Args:
        name: ``breast_cancer`` (569 rows, 2 classes), ``wine`` (178 rows, 3 classes), ``iris`` (150 rows, 3 classes) or
            ``diabetes`` (442 rows, regression).
        seed: of the division into splits.
    """

    def __init__(
        self, name: Literal["breast_cancer", "wine", "iris", "diabetes"] = "breast_cancer", seed: int = 0
    ) -> None:
        super().__init__(source=f"sklearn {name}", seed=seed)
        self.name = name

    def read(self) -> dict[str, Columns]:
        from sklearn import datasets

        loaded = getattr(datasets, f"load_{self.name}")()
        columns: Columns = {
            str(name): loaded.data[:, i].astype(np.float64) for i, name in enumerate(loaded.feature_names)
        }
        names = getattr(loaded, "target_names", None)
        columns[TARGET] = np.asarray(
            loaded.target if names is None else np.asarray(names, dtype=np.str_)[loaded.target]
        )
        return {"all": columns}
