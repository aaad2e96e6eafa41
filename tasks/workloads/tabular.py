"""Any table, classification or regression: CSV, Parquet, JSON lines or npz, local or s3://."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.readers.kept_columns import Unlabelled, keep_columns, labelled_rows, require_target
from tasks.readers.reading import ReadColumns, Reading
from tasks.readers.source_parts import in_parts
from tasks.readers.splitting import Divided, complete, require_splits, split_columns
from tasks.running.errors import DataReadError
from tasks.running.splits import TARGET, Columns
from tasks.workloads.table_facts import MAX_INTEGER_CLASSES, KnownFeatures, TableFacts, TableTask
from tasks.workloads.table_features import ColumnScale, TableFeatures
from tasks.workloads.table_parts import TableParts
from tasks.workloads.workload import ACCURACY, Inputs, Metric

if TYPE_CHECKING:
    import pandas as pd


class Tabular:
    """One input ``features``, FP32 [N, columns], raw numbers in the order of :attr:`features`.

    Text columns are categories: in ``features`` stands the number of the text in the sorted list of those in train
    (:attr:`categories`); any other number is a text that train does not have. Dates and times are days since
    1970-01-01. A missing value (or an infinite one) is NaN, in a request ``null``. Standardising, one-hot encoding and
    filling missing numbers with train's mean are part of the model, so a request sends raw values.

    An index that pandas wrote into a file is left out, which the report says.

    Args:
        source: one file, divided into splits, or a file per split (``{train: a.csv, test: b.csv}``; the splits that
            are not named are taken out of train), or a pattern of files (``s3://bucket/shards/*.parquet``) that
            together may be larger than the memory: each row is then divided by what it holds, not by its target.
        target: name of the column to predict. Text and integers are classes, numbers with a fraction are predicted.
        task: ``classification`` or ``regression``, where that rule is wrong (integers with more than 100 different
            values are predicted as numbers).
        drop: columns to leave out, such as identifiers.
        seed: of the division into splits.
        unlabelled: what to do about rows without a target: ``refuse`` them, or ``drop`` them.
        delimiter: of CSV, what separates the fields; by default recognised.
        decimal: of CSV, ``.`` or ``,``; by default recognised.
        missing: of CSV, how a missing value is spelt besides the usual ways, such as ``["unknown"]``.
    """

    fills_missing = True

    def __init__(
        self,
        source: str | Mapping[str, str],
        target: str = TARGET,
        task: TableTask = "auto",
        drop: Sequence[str] = (),
        seed: int = 0,
        unlabelled: Unlabelled = "refuse",
        delimiter: str | None = None,
        decimal: str | None = None,
        missing: Sequence[str] = (),
    ) -> None:
        if unlabelled not in get_args(Unlabelled):
            raise DataReadError(f"unlabelled {unlabelled!r} must be one of {', '.join(get_args(Unlabelled))}")
        self.source = source
        self.target = target
        self.task = task
        self.drop = set(drop)
        self.seed = seed
        self.unlabelled = unlabelled
        self.form: dict[str, Any] = {"delimiter": delimiter, "decimal": decimal, "missing": tuple(missing)}
        self._parts: TableParts | None = None
        if isinstance(source, str) and in_parts(source):
            self._parts = TableParts(
                source, target=target, task=task, drop=self.drop, seed=seed, unlabelled=unlabelled, form=self.form
            )

    def read(self) -> dict[str, Columns]:
        """The columns as the files have them, by split, or all under ``all``."""
        from tasks.readers.tables import read_table

        if isinstance(self.source, str):
            return {"all": read_table(self.source, **self.form)}
        require_splits(self.source)
        return {split: read_table(source, **self.form) for split, source in self.source.items()}

    # -- what a workload answers ----------------------------------------------------------------------------------
    def splits(self) -> dict[str, Columns]:
        if self._parts is not None:
            return self._parts.whole()
        encoded: dict[str, Columns] = {
            name: {"features": self._features.encode(name), TARGET: self._encode_target(columns[self.target])}
            for name, columns in self._raw.items()
        }
        return Divided(encoded, self._raw.source_rows, self._raw.reading)

    def partitions(self, folder: Path) -> Iterator[Divided] | None:
        """The splits in parts where the source is a pattern of files."""
        return None if self._parts is None else self._parts.divided(folder)

    def known(self) -> dict[str, Any] | None:
        """What the rows of all files tell."""
        return None if self._parts is None else self._parts.facts.model_dump(mode="json")

    def recall(self, known: dict[str, Any]) -> None:
        """Take what :meth:`known` said, and read no files for it."""
        if self._parts is not None:
            self._parts.facts = TableFacts.model_validate(known)

    def model(self, role: str, width: float = 1.0) -> nn.Module:
        """A SimpleNet; for regression it answers in the target's own unit."""
        from tasks.workloads.architectures import SimpleNet

        if self.labels() is not None:
            return SimpleNet(shape=(self._features.width,), outputs=len(self._classes), width=width)
        net = SimpleNet(shape=(self._features.width,), outputs=1, width=width)
        return InUnits(net, float(self._target_scale.mean[0]), float(self._target_scale.deviation[0]))

    def preprocess(self, inputs: Inputs) -> Inputs:
        raw = inputs["features"]
        parts = []
        numbers = [i for i, name in enumerate(self.features) if name not in self.categories]
        if numbers:
            mean = torch.tensor(self._features.scale.mean, dtype=torch.float32, device=raw.device)
            deviation = torch.tensor(self._features.scale.deviation, dtype=torch.float32, device=raw.device)
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

        decoded = self._features.decode(split["features"])
        texts = {name: pd.Series(decoded[name], dtype="str") for name in self.categories}
        return pd.DataFrame(decoded | texts)

    def prune_hints(self) -> dict[str, Any]:
        return {"ignore": ["head" if self._is_classification else "net.head"]}

    # -- what train tells -----------------------------------------------------------------------------------------
    @property
    def features(self) -> list[str]:
        """The names of the values in ``features``, in their order."""
        return self._features.names

    @property
    def categories(self) -> dict[str, list[str]]:
        """The texts of every text column, in the order of their codes."""
        return self._features.categories

    @cached_property
    def _features(self) -> TableFeatures:
        return TableFeatures(self._raw, self.target) if self._parts is None else KnownFeatures(self._parts.facts)

    @cached_property
    def _raw(self) -> Divided:
        kept, rows = dict[str, ReadColumns](), {}
        for split, columns in self.read().items():
            require_target(columns, self.target, where=split)
            where = self.source if isinstance(self.source, str) else f"{self.source[split]} ({split})"
            table = keep_columns(columns, target=self.target, drop=self.drop, where=where)
            kept[split], rows[split] = labelled_rows(table, self.target, unlabelled=self.unlabelled, where=where)
        if "all" in kept:
            divided = split_columns(kept["all"], seed=self.seed, target=self.target, source_rows=rows["all"])
        else:
            divided = complete(dict(kept), seed=self.seed, target=self.target, source_rows=rows)
        return Divided(divided, divided.source_rows, sum((table.reading for table in kept.values()), Reading()))

    @cached_property
    def _is_classification(self) -> bool:
        if self._parts is not None:
            return self._parts.facts.classes is not None
        values = self._raw["train"][self.target]
        if self.task != "auto":
            return self.task == "classification"
        if np.issubdtype(values.dtype, np.integer):
            return len(np.unique(values)) <= MAX_INTEGER_CLASSES
        return not np.issubdtype(values.dtype, np.floating)

    @cached_property
    def _classes(self) -> list[str]:
        if self._parts is not None:
            return list(self._parts.facts.classes or ())
        return [str(value) for value in np.unique(self._raw["train"][self.target]).tolist()]

    @cached_property
    def _target_scale(self) -> ColumnScale:
        if self._parts is not None:
            return self._parts.facts.target_scale
        return ColumnScale.of(self._encode_target(self._raw["train"][self.target])[:, None])

    def _encode_target(self, values: NDArray[Any]) -> NDArray[Any]:
        if self._is_classification:
            codes = {text: code for code, text in enumerate(self._classes)}
            return np.array([codes.get(str(value), -1) for value in values.tolist()], dtype=np.int64)
        if values.dtype.kind not in "biuf":
            raise DataReadError(f"column {self.target!r} holds text; a number is needed for regression")
        return values.astype(np.float64)


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
