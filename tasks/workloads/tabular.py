"""Any table, classification or regression: CSV, Parquet, JSON lines or npz, local or s3://."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.readers.splitting import Divided, complete, split_columns
from tasks.running.errors import DataReadError
from tasks.running.splits import SPLITS, TARGET, Columns
from tasks.workloads.workload import ACCURACY, Inputs, Metric

if TYPE_CHECKING:
    import pandas as pd

MISSING, UNKNOWN = -1, -2
"""Codes of a text that is empty, and of one that train does not have; both reach the model as no category at all."""

_MAX_CATEGORIES = 100
_MAX_INTEGER_CLASSES = 100


@dataclass(frozen=True)
class ColumnScale:
    """Mean and standard deviation of train; 1 instead of 0 where all values are equal."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]


class Tabular:
    """One input ``features``, FP32 [N, columns], raw numbers in the order of :attr:`features`.

    Text columns are categories: in ``features`` stands the number of the text in the sorted list of those in train
    (:attr:`categories`). Standardising, one-hot encoding and filling missing numbers with train's mean are part of the
    model, so a request sends raw values.

    Args:
        source: one file, divided into splits, or a file per split (``{train: a.csv, test: b.csv}``; the splits that
            are not named are taken out of train).
        target: name of the column to predict. Text and integers are classes, numbers with a fraction are predicted.
        task: ``classification`` or ``regression``, where that rule is wrong (integers with more than 100 different
            values are predicted as numbers).
        drop: columns to leave out, such as identifiers.
        seed: of the division into splits.
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        target: str = TARGET,
        task: Literal["auto", "classification", "regression"] = "auto",
        drop: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        self.source = source
        self.target = target
        self.task = task
        self.drop = set(drop)
        self.seed = seed

    def read(self) -> dict[str, Columns]:
        """The columns as the files have them, by split, or all under ``all``."""
        from tasks.readers.tables import read_table

        if isinstance(self.source, str):
            return {"all": read_table(self.source)}
        unknown = sorted(set(self.source) - set(SPLITS))
        if unknown:
            raise DataReadError(f"source names the splits {unknown}; known are {', '.join(SPLITS)}")
        return {split: read_table(source) for split, source in self.source.items()}

    # -- what a workload answers ----------------------------------------------------------------------------------
    def splits(self) -> dict[str, Columns]:
        encoded: dict[str, Columns] = {
            name: {"features": self._encode(columns), TARGET: self._encode_target(columns[self.target])}
            for name, columns in self._raw.items()
        }
        return Divided(encoded, self._raw.source_rows)

    def model(self, role: str, width: float = 1.0) -> nn.Module:
        """A SimpleNet; for regression it answers in the target's own unit."""
        from tasks.workloads.architectures import SimpleNet

        if self.labels() is not None:
            return SimpleNet(shape=(self._width,), outputs=len(self._classes), width=width)
        net = SimpleNet(shape=(self._width,), outputs=1, width=width)
        return InUnits(net, float(self._target_scale.mean[0]), float(self._target_scale.deviation[0]))

    def preprocess(self, inputs: Inputs) -> Inputs:
        raw = inputs["features"]
        parts = []
        numbers = [i for i, name in enumerate(self.features) if name not in self.categories]
        if numbers:
            mean = torch.tensor(self._scale.mean, dtype=torch.float32, device=raw.device)
            deviation = torch.tensor(self._scale.deviation, dtype=torch.float32, device=raw.device)
            standard = ((raw[:, numbers] if self.categories else raw) - mean) / deviation
            parts.append(torch.where(torch.isnan(standard), torch.zeros_like(standard), standard))
        for i, name in enumerate(self.features):
            if name in self.categories:
                codes = torch.arange(len(self.categories[name]), dtype=torch.float32, device=raw.device)
                parts.append((raw[:, i : i + 1] == codes).float())
        return {"features": torch.cat(parts, dim=1)}

    def labels(self) -> list[str] | None:
        return self._classes if self._is_classification else None

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self._is_classification:
            return nn.functional.cross_entropy(outputs, targets)
        # In units of train's variance, so that one learning rate suits every target.
        return (
            nn.functional.mse_loss(outputs.reshape(targets.shape), targets)
            / float(self._target_scale.deviation[0]) ** 2
        )

    def metric(self) -> Metric:
        """Accuracy; for regression the squared error as a share of the target's variance in train (1 - R2)."""
        if self._is_classification:
            return ACCURACY
        variance = float(self._target_scale.deviation[0]) ** 2

        def scores(outputs: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
            errors: NDArray[np.float64] = (outputs.astype(np.float64).reshape(len(targets)) - targets) ** 2
            return errors / variance

        return Metric("nmse", "lower", scores)

    def frame(self, split: Columns) -> pd.DataFrame:
        """The table as a person knows it: columns by name, categories as text."""
        import pandas as pd

        columns: dict[str, Any] = {}
        for i, name in enumerate(self.features):
            values = split["features"][:, i]
            if name in self.categories:
                texts = {**dict(enumerate(self.categories[name])), UNKNOWN: "not in train"}
                columns[name] = pd.Series([texts.get(int(value)) for value in values], dtype="str")
            else:
                columns[name] = values
        return pd.DataFrame(columns)

    def prune_hints(self) -> dict[str, Any]:
        return {"ignore": ["head" if self._is_classification else "net.head"]}

    # -- what train tells -----------------------------------------------------------------------------------------
    @cached_property
    def features(self) -> list[str]:
        """The names of the values in ``features``, in their order."""
        return [name for name, _ in self._flat(self._raw["train"])]

    @cached_property
    def categories(self) -> dict[str, list[str]]:
        """The texts of every text column, in the order of their codes."""
        found = {}
        for name, values in self._flat(self._raw["train"]):
            if values.dtype.kind == "U":
                found[name] = sorted(set(values.tolist()) - {""})
                if len(found[name]) > _MAX_CATEGORIES:
                    raise DataReadError(
                        f"column {name!r} has {len(found[name])} different texts, at most {_MAX_CATEGORIES} can be "
                        "categories; leave it out by `drop`, or encode it as numbers"
                    )
        return found

    @cached_property
    def _raw(self) -> Divided:
        read = self.read()
        for split, columns in read.items():
            if self.target not in columns:
                raise DataReadError(
                    f"the data ({split}) has no column {self.target!r} to predict; it has {sorted(columns)}; "
                    "name one of them by `target`"
                )
            if columns[self.target].ndim != 1:
                raise DataReadError(f"column {self.target!r} holds lists; the target must be one value per row")
        if "all" in read:
            return split_columns(read["all"], seed=self.seed, target=self.target)
        return complete(read, seed=self.seed, target=self.target)

    @cached_property
    def _is_classification(self) -> bool:
        values = self._raw["train"][self.target]
        if self.task != "auto":
            return self.task == "classification"
        if np.issubdtype(values.dtype, np.integer):
            return len(np.unique(values)) <= _MAX_INTEGER_CLASSES
        return not np.issubdtype(values.dtype, np.floating)

    @cached_property
    def _classes(self) -> list[str]:
        return [str(value) for value in np.unique(self._raw["train"][self.target]).tolist()]

    @cached_property
    def _scale(self) -> ColumnScale:
        columns = [values for name, values in self._flat(self._raw["train"]) if name not in self.categories]
        return _scale(np.stack(columns, axis=1))

    @cached_property
    def _target_scale(self) -> ColumnScale:
        return _scale(self._encode_target(self._raw["train"][self.target])[:, None])

    @property
    def _width(self) -> int:
        """Values that reach the model: a number each, and as many per category column as it has categories."""
        return sum(len(self.categories.get(name, [""])) for name in self.features)

    def _flat(self, columns: Columns) -> list[tuple[str, NDArray[Any]]]:
        """The input columns by name, in the file's order; lists as ``name[0]``, ``name[1]``, ..."""
        found: list[tuple[str, NDArray[Any]]] = []
        for name, values in columns.items():
            if name == self.target or name in self.drop:
                continue
            if values.ndim == 1:
                found.append((name, values))
            else:
                flat = values.reshape(len(values), -1)
                found += [(f"{name}[{i}]", flat[:, i]) for i in range(flat.shape[1])]
        if not found:
            raise DataReadError(
                f"the data has no column besides the target {self.target!r}; there is nothing to learn from"
            )
        return found

    def _encode(self, columns: Columns) -> NDArray[np.float32]:
        there = dict(self._flat(columns))
        missing = [name for name in self.features if name not in there]
        if missing:
            raise DataReadError(
                f"a split lacks the columns {missing} that train has; give every split the same columns"
            )
        encoded = []
        for name in self.features:
            values = there[name]
            if name in self.categories:
                codes = {text: code for code, text in enumerate(self.categories[name])} | {"": MISSING}
                values = np.array([codes.get(text, UNKNOWN) for text in values.astype(np.str_).tolist()])
            elif values.dtype.kind == "U":
                raise DataReadError(
                    f"column {name!r} holds numbers in train and text in another split; make it the same"
                )
            encoded.append(values.astype(np.float32))
        return np.stack(encoded, axis=1)

    def _encode_target(self, values: NDArray[Any]) -> NDArray[Any]:
        if self._is_classification:
            codes = {text: code for code, text in enumerate(self._classes)}
            return np.array([codes.get(str(value), -1) for value in values.tolist()], dtype=np.int64)
        if values.dtype.kind not in "biuf":
            raise DataReadError(f"column {self.target!r} holds text; a number is needed for regression")
        return values.astype(np.float32)


class InUnits(nn.Module):
    """A network whose answer is turned from standard deviations into the target's unit, [N, 1]."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, net: nn.Module, mean: float, deviation: float) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("deviation", torch.tensor(deviation))

    def forward(self, **inputs: Tensor) -> Tensor:
        answer: Tensor = self.net(**inputs) * self.deviation + self.mean
        return answer


def _scale(values: NDArray[Any]) -> ColumnScale:
    """Of the columns [rows, columns], over what is finite."""
    finite = np.where(np.isfinite(values.astype(np.float64)), values.astype(np.float64), np.nan)
    count = np.isfinite(finite).sum(axis=0)
    mean = np.nansum(finite, axis=0) / np.maximum(count, 1)
    deviation = np.sqrt(np.nansum((finite - mean) ** 2, axis=0) / np.maximum(count, 1))
    return ColumnScale(mean, np.where(deviation > 0, deviation, 1.0))
