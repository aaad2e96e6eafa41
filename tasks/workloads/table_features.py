"""Columns of a table as the numbers that a model takes: one value per column, texts by their number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.readers.kept_columns import is_missing
from tasks.running.errors import DataReadError
from tasks.running.splits import Columns

_MAX_CATEGORIES = 100


@dataclass(frozen=True)
class ColumnScale:
    """Mean and standard deviation of train; 1 instead of 0 where all values are equal."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @classmethod
    def of(cls, values: NDArray[Any]) -> ColumnScale:
        """Of the columns [rows, columns], over what is finite."""
        finite = np.where(np.isfinite(values.astype(np.float64)), values.astype(np.float64), np.nan)
        count = np.isfinite(finite).sum(axis=0)
        mean = np.nansum(finite, axis=0) / np.maximum(count, 1)
        deviation = np.sqrt(np.nansum((finite - mean) ** 2, axis=0) / np.maximum(count, 1))
        return cls(mean, np.where(deviation > 0, deviation, 1.0))


class TableFeatures:
    """All columns but the target, of all splits.

    A missing value is NaN, of numbers (infinite ones too) and of texts. Texts that train does not have are numbered
    after those that it has: to the model they are no category, but rows that differ in them stay different.
    """

    def __init__(self, splits: Mapping[str, Columns], target: str) -> None:
        self._splits, self._target = splits, target

    @cached_property
    def names(self) -> list[str]:
        """The columns in the file's order; lists as ``name[0]``, ``name[1]``, ..."""
        return list(self._flat("train"))

    @cached_property
    def categories(self) -> dict[str, list[str]]:
        """The texts of train of every text column, in the order of their numbers."""
        found = {}
        for name, values in self._flat("train").items():
            if values.dtype.kind == "U":
                found[name] = checked_categories(name, values[~is_missing(values)].tolist())
        return found

    @cached_property
    def texts(self) -> dict[str, list[str]]:
        """The texts of every text column in all splits by their numbers: those of train first."""
        all_of = {
            name: {text for split in self._splits for text in self._there(split)[name].astype(np.str_).tolist()}
            for name in self.categories
        }
        return {
            name: [*own, *sorted(text for text in all_of[name] - set(own) if text.strip())]
            for name, own in self.categories.items()
        }

    @cached_property
    def scale(self) -> ColumnScale:
        """Of the number columns of train."""
        columns = [values for name, values in self._flat("train").items() if name not in self.categories]
        return ColumnScale.of(np.stack(columns, axis=1))

    @property
    def width(self) -> int:
        """Values that reach the model: a number each, and as many per category column as it has categories."""
        return sum(len(self.categories.get(name, [""])) for name in self.names)

    def encode(self, split: str) -> NDArray[np.float64]:
        """The split's rows as [rows, columns]."""
        encoded = []
        for name, values in self._there(split).items():
            if name in self.categories:
                numbers = {text: float(number) for number, text in enumerate(self.texts[name])}
                values = np.array([numbers.get(text, np.nan) for text in values.astype(np.str_).tolist()])
            elif values.dtype.kind == "U":
                raise DataReadError(
                    f"column {name!r} holds numbers in train and text in another split; make it the same"
                )
            numbers_there = values.astype(np.float64)
            encoded.append(np.where(np.isfinite(numbers_there), numbers_there, np.nan))
        return np.stack(encoded, axis=1)

    def decode(self, features: NDArray[Any]) -> dict[str, list[str | None] | NDArray[Any]]:
        """Encoded rows [rows, columns] as a person knows them: by name, numbers and texts, None for a missing text."""
        decoded: dict[str, list[str | None] | NDArray[Any]] = {}
        for place, name in enumerate(self.names):
            values = features[:, place]
            decoded[name] = values
            if name in self.categories:
                texts = dict(enumerate(self.texts[name]))
                decoded[name] = [texts.get(int(number)) if number == number else None for number in values.tolist()]
        return decoded

    def _there(self, split: str) -> Columns:
        """The columns of train in a split."""
        there = self._flat(split)
        missing = [name for name in self.names if name not in there]
        if missing:
            raise DataReadError(
                f"a split lacks the columns {missing} that train has; give every split the same columns"
            )
        return {name: there[name] for name in self.names}

    def _flat(self, split: str) -> Columns:
        return flat_columns(self._splits[split], self._target)


def flat_columns(columns: Columns, target: str) -> Columns:
    """The columns besides the target, [rows] each: lists as ``name[0]``, ``name[1]``, ..."""
    found: Columns = {}
    for name, values in columns.items():
        if name == target:
            continue
        if values.ndim == 1:
            found[name] = values
        else:
            flat = values.reshape(len(values), -1)
            found |= {f"{name}[{i}]": flat[:, i] for i in range(flat.shape[1])}
    return found


def checked_categories(name: str, texts: Iterable[str]) -> list[str]:
    """The different texts of a column, sorted, without the empty one; DataReadError where they are too many."""
    found = sorted({text for text in texts if text.strip()})
    if len(found) > _MAX_CATEGORIES:
        raise DataReadError(
            f"column {name!r} has {len(found)} different texts, at most {_MAX_CATEGORIES} can be "
            "categories; leave it out by `drop`, or encode it as numbers"
        )
    return found
