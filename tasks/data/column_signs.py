"""Signs that a column is not what it seems: rounded away, a number of the row, or the answer itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.readers.content import as_stored
from tasks.running.splits import TARGET, Columns

if TYPE_CHECKING:
    import pandas as pd

SIGNS = ("rounded", "counts rows", "gives the answer")
OwnFrame = Callable[[Columns], "pd.DataFrame | None"]

_ROWS = 10_000
"""Rows in which different values are counted: among more, random numbers meet by chance in float32."""
_LEFT, _COARSE = 0.9, 0.05
"""A column is rounded away if fewer of its different values are left, and what is lost is this part of their spread."""
_WIDEST = 256
"""Values per row of an input [rows, values] that are looked at one by one."""
_FEWEST = 30
_BINS, _ROWS_PER_BIN = 64, 8
_ALONE, _REMAINS = 0.98, 0.2
"""A column gives the answer if it is right this often alone, with no more than this share of the errors of a guess."""
_FAR, _HIGH = 0.25, 0.9
"""Or if it is this often right, and by so much more than the next best column."""


def column_frame(splits: dict[str, Columns], own_frame: OwnFrame, *, rows: int | None = None) -> pd.DataFrame:
    """A row per column, its signs in words where they show, else None; without rows where nothing is a column.

    Args:
        splits: as the workload gives them, before they are stored.
        own_frame: the workload's frame of a split, or None: then each input [rows] and [rows, values] is looked at.
        rows: that there are in all, where the splits hold a part of them.
    """
    import pandas as pd

    columns = {name: _columns(split, own_frame) for name, split in splits.items()}
    names = [name for name in columns["train"] if all(name in there for there in columns.values())]
    answers = _answers(columns, splits, names)
    lines = [
        {
            "column": name,
            "rounded": _rounded(columns["train"][name]),
            "counts rows": _counts_rows(np.concatenate([there[name] for there in columns.values()]), rows),
            "gives the answer": answers.get(name),
        }
        for name in names
    ]
    if splits["train"][TARGET].dtype == np.float64:
        lines.append({"column": TARGET, "rounded": _rounded(splits["train"][TARGET])})
    return pd.DataFrame(lines, columns=["column", *SIGNS], dtype=object)


def _columns(split: Columns, own_frame: OwnFrame) -> dict[str, NDArray[Any]]:
    own = own_frame(split)
    if own is not None:
        found = {str(name): own[name].to_numpy() for name in own.columns if name != TARGET}
        # Texts, and whatever else is no number, are compared as text.
        return {
            n: v if v.dtype.kind in "biuf" else np.where(own[n].isna(), "", v).astype(np.str_) for n, v in found.items()
        }
    named: dict[str, NDArray[Any]] = {}
    for name, values in split.items():
        if name == TARGET:
            continue
        if values.ndim == 1:
            named[name] = values
        elif values.ndim == 2 and values.shape[1] <= _WIDEST:
            named |= {f"{name}[{place}]": values[:, place] for place in range(values.shape[1])}
    return named


def _plain_values(column: pd.Series[Any]) -> NDArray[Any]:
    """Numbers as they are; texts, and whatever else is no number, as text, missing ones empty."""
    values: NDArray[Any] = column.to_numpy()
    return values if values.dtype.kind in "biuf" else np.where(column.isna(), "", values).astype(np.str_)


def _rounded(values: NDArray[Any]) -> str | None:
    if values.dtype != np.float64:
        return None
    values = values[np.isfinite(values)][:_ROWS]
    stored = as_stored(values)
    different, left = len(np.unique(values)), len(np.unique(stored))
    if left >= _LEFT * different:
        return None
    lost = float(np.sqrt(np.mean((values - stored) ** 2)))
    quarter, three_quarters = np.quantile(values, (0.25, 0.75))  # not moved by a few zeros that mean something else
    spread = float(three_quarters - quarter) or float(values.std())
    return f"{different} different values, {left} left in float32" if lost > _COARSE * spread else None


def _counts_rows(values: NDArray[Any], rows: int | None) -> str | None:
    if len(values) < _FEWEST or values.dtype.kind == "b" or len(np.unique(values)) < len(values):
        return None
    if values.dtype.kind == "U":
        return f"{len(values)} different texts in as many rows"
    if not np.isfinite(values).all() or (values != np.floor(values)).any():
        return None
    low, high = values.min(), values.max()
    if float(high) - float(low) >= 2 * (rows or len(values)):
        return None
    return f"{len(values)} different whole numbers in as many rows, from {low:.0f} to {high:.0f}"


def _answers(
    columns: dict[str, dict[str, NDArray[Any]]], splits: dict[str, Columns], names: list[str]
) -> dict[str, str]:
    """What the columns that give the answer alone achieve: learned from train, judged on validation."""
    train, validation = splits["train"][TARGET], splits["validation"][TARGET]
    if train.ndim > 1 or len(names) < 2 or min(len(train), len(validation)) < _FEWEST:
        return {}
    judge, what = _share_right, "right"
    if train.dtype.kind == "f":  # by rank: a few large targets must not decide
        _, ranks = np.unique(np.concatenate([train, validation]), return_inverse=True)
        train, validation = ranks[: len(train)], ranks[len(train) :]
        judge, what = _share_explained, "of the ranks' variance explained"
    alone = {}
    for name in names:
        seen, asked = columns["train"][name], columns["validation"][name]
        places = _places(seen, asked)
        alone[name] = judge(*places, train, validation)
    chance = judge(np.zeros(len(train), dtype=int), np.zeros(len(validation), dtype=int), train, validation)
    found = {}
    for name, share in alone.items():
        next_best = max(other for column, other in alone.items() if column != name)
        near = share >= _ALONE and 1 - share <= _REMAINS * (1 - chance)
        far = share >= _HIGH and share - next_best >= _FAR
        if near or far:
            compared = f"the next best column {next_best:.1%}, none {max(chance, 0):.1%}"
            found[name] = f"alone {share:.1%} {what} on validation, {compared}"
    return found


def _places(train: NDArray[Any], other: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The bin of each value: a value of its own where there are few, else of about equal numbers of rows."""
    known = np.unique(train)
    bins = max(2, min(_BINS, len(train) // _ROWS_PER_BIN))
    if len(known) > bins and known.dtype.kind != "U":
        finite = train[np.isfinite(train)].astype(np.float64)
        edges = np.unique(np.quantile(finite, np.linspace(0, 1, bins + 1)[1:-1])) if len(finite) else finite
        return np.searchsorted(edges, train, side="right"), np.searchsorted(edges, other, side="right")
    return np.searchsorted(known, train), np.searchsorted(known, other)  # what is not known falls beside its like


def _share_right(
    seen: NDArray[np.intp], asked: NDArray[np.intp], train: NDArray[Any], validation: NDArray[Any]
) -> float:
    classes, numbers = np.unique(train, return_inverse=True)
    counts = np.zeros((int(max(seen.max(), asked.max())) + 1, len(classes)), dtype=np.int64)
    np.add.at(counts, (seen, numbers), 1)
    counts[counts.sum(axis=1) == 0] = np.bincount(numbers, minlength=len(classes))
    return float((classes[counts.argmax(axis=1)][asked] == validation).mean())


def _share_explained(
    seen: NDArray[np.intp], asked: NDArray[np.intp], train: NDArray[Any], validation: NDArray[Any]
) -> float:
    size = int(max(seen.max(), asked.max())) + 1
    counts, sums = np.bincount(seen, minlength=size), np.bincount(seen, weights=train, minlength=size)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), train.mean())
    spread = float(((validation - validation.mean()) ** 2).mean())
    return 1 - float(((means[asked] - validation) ** 2).mean()) / spread if spread else 0.0
