"""Splits as frames for the checks: a row per sample, tensors as a few numbers each."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.data.repeats import Repeats
from tasks.running.errors import WorkloadError
from tasks.running.splits import TARGET, Columns

if TYPE_CHECKING:
    import pandas as pd

REPEATS = Repeats._fields
MAX_CLASSES = 1000


def split_frame(
    columns: Columns, repeats: Repeats, labels: tuple[str, ...] | None, own: pd.DataFrame | None
) -> pd.DataFrame:
    """One row per sample, in the split's order.

    Args:
        columns: the split's arrays [rows, ...].
        repeats: where each row's like is; becomes the columns ``duplicate_of``, ``also_in``, ``conflicts_with``.
        labels: class names for the column ``target``.
        own: the frame the workload made itself; by default numbers stay as they are and every tensor is described by
            ``name.min``, ``name.max``, ``name.mean`` and ``name.nonfinite`` (how many values are NaN or infinite).

    Raises:
        WorkloadError: the workload's own frame has another number of rows.
    """
    import pandas as pd

    rows = len(columns[TARGET])
    if own is None:
        frame = pd.DataFrame(summarise_samples({name: array for name, array in columns.items() if name != TARGET}))
    elif len(own) != rows:
        raise WorkloadError(
            f"frame(split) returned {len(own)} rows for a split of {rows}; it must return one per sample"
        )
    else:
        frame = own.reset_index(drop=True).drop(columns=[TARGET], errors="ignore")
    frame = _missing_as_null(frame)
    frame.index = pd.RangeIndex(rows)
    target = columns[TARGET]
    if np.issubdtype(target.dtype, np.integer) and target.ndim == 1:
        frame[TARGET] = pd.Series([class_name(int(value), labels) for value in target], dtype="str")
    else:
        for name, values in _missing_as_null(pd.DataFrame(summarise_samples({TARGET: target}))).items():
            frame[name] = values
    for name, where in zip(REPEATS, repeats, strict=True):
        frame[name] = pd.Series(where, dtype="str")
    return frame


def schema_frame(splits: dict[str, Columns]) -> pd.DataFrame:
    """One row per split and column: its type, and the type of that column in train."""
    import pandas as pd

    names = sorted({name for columns in splits.values() for name in columns})
    return pd.DataFrame(
        [
            {
                "split": split,
                "column": name,
                "type": _type(columns, name),
                "type in train": _type(splits["train"], name),
            }
            for split, columns in splits.items()
            for name in names
        ]
    )


def class_counts(target: NDArray[Any]) -> dict[int, int]:
    """How many rows [rows] each class has, by its number, ascending."""
    classes, counts = np.unique(target, return_counts=True)
    return {int(value): count for value, count in zip(classes.tolist(), counts.tolist(), strict=True)}


def class_frame(counts: Mapping[str, Mapping[int, int]], labels: tuple[str, ...] | None) -> pd.DataFrame:
    """One row per split and class: how many rows it has, and how that compares with the most frequent class."""
    import pandas as pd

    lines: list[dict[str, Any]] = []
    for split, rows in counts.items():
        for value, count in rows.items():
            name = class_name(value, labels)
            lines.append({"split": split, "class": name, "rows": count, "share of largest": count / max(rows.values())})
    return pd.DataFrame(lines)


def classes_there_may_be(highest: int, labels: tuple[str, ...] | None) -> list[str]:
    """The classes that targets may have: those of the labels, else 0 up to the highest in train."""
    count = len(labels) if labels is not None else max(highest, 0) + 1
    return [class_name(value, labels) for value in range(count)]


def class_name(value: int, labels: tuple[str, ...] | None) -> str:
    """The label of a class, or its number where there is none."""
    return labels[value] if labels is not None and 0 <= value < len(labels) else str(value)


def summarise_samples(columns: Columns) -> dict[str, NDArray[Any]]:
    """Numbers that tell of each column: itself where it is [rows], else what its finite values are like, by row."""
    told: dict[str, NDArray[Any]] = {}
    for name, array in columns.items():
        if array.ndim == 1:
            told[name] = array
            continue
        flat: NDArray[Any] = array.reshape(len(array), -1)
        finite = np.isfinite(flat)
        if not finite.all():
            flat = np.where(finite, flat, np.nan)
        with warnings.catch_warnings():  # a row without any finite value: it stays NaN
            warnings.simplefilter("ignore", RuntimeWarning)
            told[f"{name}.min"] = np.asarray(np.nanmin(flat, axis=1), dtype=np.float64)
            told[f"{name}.max"] = np.asarray(np.nanmax(flat, axis=1), dtype=np.float64)
            told[f"{name}.mean"] = np.asarray(np.nanmean(flat, axis=1, dtype=np.float64))
        if np.issubdtype(array.dtype, np.floating):
            told[f"{name}.nonfinite"] = (~finite).sum(axis=1)
    return told


def _missing_as_null(frame: pd.DataFrame) -> pd.DataFrame:
    """Infinite numbers and empty texts as null, which is what the checks look for."""
    import pandas as pd

    frame = frame.copy()
    for name in frame.columns:
        values = frame[name]
        if pd.api.types.is_float_dtype(values):
            frame[name] = values.where(np.isfinite(values))
        elif pd.api.types.is_string_dtype(values) or pd.api.types.is_object_dtype(values):
            frame[name] = values.where(values != "")
    return frame


def _type(columns: Columns, name: str) -> str:
    if name not in columns:
        return "absent"
    return f"{columns[name].dtype.name} {list(columns[name].shape[1:])}"
