"""Data that a user holds in Python as columns: arrays, tensors, data frames, torch data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from tasks.readers.splitting import split_columns
from tasks.running.errors import DataReadError
from tasks.running.splits import TARGET, Columns

_FORMS = (
    "give (inputs, targets) as arrays, tensors or pandas objects, a dict of columns with the key 'target', or a "
    "torch Dataset whose items are (input, target)"
)


def as_columns(data: Any, inputs: Sequence[str], *, labels: Sequence[str] | None = None, what: str) -> Columns:
    """The data as equal-length arrays by column name, the targets as ``target``.

    Args:
        data: ``(inputs, targets)``; a mapping of columns with the key ``target``; or a map-style torch Dataset of
            ``(input, target)``. Inputs are one array [rows, ...], a pandas DataFrame of numbers [rows, features], or a
            mapping of them by the model's input names.
        inputs: what the model's forward() calls its inputs, in order.
        labels: names of the classes; targets that are text are numbered by them.
        what: the split, for messages.

    Raises:
        DataReadError: the data have another form, are empty, or hold something that is no number.
    """
    given, targets = _pair(data, what)
    columns = _inputs(given, inputs, what)
    columns[TARGET] = _targets(targets, labels, what)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataReadError(f"{what}: inputs and targets differ in length: {lengths}; every row needs both")
    if not lengths[TARGET]:
        raise DataReadError(f"{what} holds no rows; at least ten are needed")
    return columns


def hold_out(train: Columns, *, share: float = 0.1, most: int = 512, seed: int = 0) -> tuple[Columns, Columns]:
    """``train`` without the rows that become the calibration split, and that split; which ones, the seed decides.

    Equal rows stay together.

    Raises:
        DataReadError: all rows are equal, or there is one alone.
    """
    rows = len(train[TARGET])
    share = min(max(share, 1 / rows), most / rows, 0.5)
    split = split_columns(train, seed=seed, fractions={"train": 1 - share, "calibration": share})
    return split["train"], split["calibration"]


def _pair(data: Any, what: str) -> tuple[Any, Any]:
    if isinstance(data, Mapping):
        if TARGET not in data:
            raise DataReadError(f"{what} has the columns {sorted(map(str, data))} and no {TARGET!r}; add the targets")
        return {name: values for name, values in data.items() if name != TARGET}, data[TARGET]
    if isinstance(data, tuple | list) and len(data) == 2:
        return data[0], data[1]
    if isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__") and not _is_array(data)):
        return _collected(data, what)
    raise DataReadError(f"{what} is a {type(data).__name__}; {_FORMS}")


def _is_array(data: Any) -> bool:
    return hasattr(data, "shape") or isinstance(data, str | bytes)


def _collected(data: Any, what: str) -> tuple[Any, Any]:
    """All items of a data set, in order."""
    if not hasattr(data, "__len__"):
        raise DataReadError(f"{what} is a {type(data).__name__} without a length; {_FORMS}")
    items = [data[index] for index in range(len(data))]
    wrong = next((item for item in items if not (isinstance(item, tuple | list) and len(item) == 2)), None)
    if not items or wrong is not None:
        found = "no items" if not items else f"an item of type {type(wrong).__name__}"
        raise DataReadError(f"{what} is a {type(data).__name__} with {found}; {_FORMS}")
    targets = [item[1] for item in items]
    if isinstance(items[0][0], Mapping):
        names = list(items[0][0])
        return {name: [item[0][name] for item in items] for name in names}, targets
    return [item[0] for item in items], targets


def _inputs(given: Any, inputs: Sequence[str], what: str) -> Columns:
    if isinstance(given, Mapping):
        names = {str(name) for name in given}
        if names != set(inputs):
            raise DataReadError(
                f"{what} has the inputs {sorted(names)}, the model's forward() takes {list(inputs)}; rename one of them"
            )
        return {str(name): _numbers(values, f"{what}: input {name!r}") for name, values in given.items()}
    if len(inputs) != 1:
        raise DataReadError(
            f"{what} has one array, the model's forward() takes {list(inputs)}; give a dict with these keys"
        )
    return {inputs[0]: _numbers(given, f"{what}: input {inputs[0]!r}")}


def _targets(targets: Any, labels: Sequence[str] | None, what: str) -> NDArray[np.generic]:
    values = _plain(targets)
    if values.dtype.kind in "OUS":
        names = [str(value) for value in values.ravel()]
        if labels is None:
            raise DataReadError(
                f"{what}: targets are text ({names[0]!r}, ...); give the names of the classes in the order of the "
                "model's outputs as labels=[...], or number the targets from 0"
            )
        numbers = {str(label): number for number, label in enumerate(labels)}
        unknown = sorted(set(names) - set(numbers))
        if unknown:
            raise DataReadError(f"{what}: targets {unknown[:5]} are not among labels {list(labels)[:20]}; add them")
        values = np.array([numbers[name] for name in names], dtype=np.int64)
    values = _checked(values, f"{what}: targets")
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


def _numbers(values: Any, what: str) -> NDArray[np.generic]:
    return _checked(_plain(values), what)


def _plain(values: Any) -> NDArray[Any]:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().numpy()
    if isinstance(values, list | tuple) and values and isinstance(values[0], torch.Tensor):
        shapes = {tuple(value.shape) for value in values}
        if len(shapes) > 1:
            return np.empty(len(values), dtype=object)  # refused as what cannot form one array
        return torch.stack([value.detach().cpu() for value in values]).numpy()
    if hasattr(values, "to_numpy"):  # pandas; of columns with mixed types this gives objects
        array: NDArray[Any] = values.to_numpy()
        return array
    try:
        return np.asarray(values)
    except ValueError:  # numpy's, for rows of several shapes
        return np.empty(len(values), dtype=object)


def _checked(values: NDArray[Any], what: str) -> NDArray[np.generic]:
    if values.dtype.kind not in "biuf":
        raise DataReadError(
            f"{what} cannot become one array of numbers (it is {values.dtype}); encode text and dates as numbers, and "
            "bring all rows to one shape"
        )
    if not values.ndim:
        raise DataReadError(f"{what} is a single value; give an array [rows, ...]")
    return np.ascontiguousarray(values)
