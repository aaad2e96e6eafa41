"""What is expected of each frame, as Great Expectations suites.

Every expectation carries in its ``meta`` the check it belongs to and what to do when it is not met; its severity says
whether that stops the run (critical) or is reported (warning).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import great_expectations.expectations as gxe
import pandas as pd
from great_expectations.expectations.expectation import Expectation

from tasks.data.frames import REPEATS
from tasks.running.splits import TARGET

Severity = Literal["critical", "warning"]
_SEVERITY: dict[str, Severity] = {"fail": "critical", "warn": "warning"}
_WEAKER = {"fail": "warn", "warn": "skip"}
_STRAYS = (0.01, 3)
"""Rows that may be unlike those of train before it is reported: this share, and in small splits this many."""

_MORE_ROWS = "bring more rows, or lower data.min_rows"

_REPEATS = {
    "duplicates": ("duplicate_of", "No sample is in this split twice", "drop the repeated rows"),
    "leakage": (
        "also_in",
        "No sample is in another split too",
        "keep each sample in one split only: what was trained on cannot measure the result",
    ),
    "conflicts": ("conflicts_with", "Equal samples have equal targets", "correct or drop the contradicting rows"),
}


class DataCheck:
    """What all expectations of one check share."""

    def __init__(self, name: str, severity: Severity, remedy: str) -> None:
        self.name, self.severity, self.remedy = name, severity, remedy

    def __call__(self, kind: type[Expectation], description: str, **arguments: Any) -> Expectation:
        meta = {"check": self.name, "remedy": self.remedy, "says": description}
        return kind(severity=self.severity, meta=meta, description=description, **arguments)


def schema_expectations() -> list[Expectation]:
    """For the frame of :func:`tasks.data.frames.schema_frame`."""
    check = DataCheck("schema", "critical", "give every split the same columns, types and shapes")
    return [
        check(
            gxe.ExpectColumnPairValuesToBeEqual,
            "Every column has the type and shape it has in train",
            column_A="type",
            column_B="type in train",
        )
    ]


_SIGNS = {
    "precision": (
        "rounded",
        "float32 keeps the different values of every column",
        "subtract a constant or use a larger unit (seconds of the day instead of milliseconds since 1970), or leave "
        "the column out",
    ),
    "identifiers": (
        "counts rows",
        "No column numbers or names the rows",
        "leave it out if it only identifies the rows: what was learned from it is worth nothing for new ones",
    ),
    "revealing": (
        "gives the answer",
        "No column gives the answer alone",
        "leave it out if it is not known before the answer is",
    ),
}


def column_expectations(spec: dict[str, Any]) -> list[Expectation]:
    """For the frame of :func:`tasks.data.column_signs.column_frame`."""
    found = []
    for name, (column, description, remedy) in _SIGNS.items():
        if spec[name] != "skip":
            check = DataCheck(name, _SEVERITY[spec[name]], f"{remedy}; or set data.{name}: {_WEAKER[spec[name]]}")
            found.append(check(gxe.ExpectColumnValuesToBeNull, description, column=column))
    return found


def class_expectations(spec: dict[str, Any]) -> list[Expectation]:
    """For the frame of :func:`tasks.data.frames.class_frame`."""
    if spec["balance"] == "skip":
        return []
    limit = spec["max_imbalance"]
    check = DataCheck(
        "balance", _SEVERITY[spec["balance"]], "collect more of the rare classes, or raise data.max_imbalance"
    )
    return [
        check(
            gxe.ExpectColumnValuesToBeBetween,
            f"No class is more than {limit:g} times rarer than the most frequent one of its split",
            column="share of largest",
            min_value=1 / limit,
        )
    ]


def split_expectations(
    frame: pd.DataFrame, train: pd.DataFrame, classes: list[str] | None, spec: dict[str, Any]
) -> list[Expectation]:
    """For the frame of one split.

    Args:
        frame: the split's frame, of :func:`tasks.data.frames.split_frame`.
        train: that of train, whose ranges the others are compared with.
        classes: names of the classes the target may have; None where it is no class.
        spec: the fields of DataSpec.
    """
    found = [_rows(spec["min_rows"])]
    if classes is not None:
        found += present_classes(classes, train=frame is train)
    return found + row_expectations(frame, train, classes, spec, rows=len(frame))


def size_expectations(spec: dict[str, Any]) -> list[Expectation]:
    """For a frame with a row per split, and how many rows it has as ``rows``."""
    check = DataCheck("rows", "critical", _MORE_ROWS)
    says = f"There are at least {spec['min_rows']} rows"
    return [check(gxe.ExpectColumnValuesToBeBetween, says, column="rows", min_value=spec["min_rows"])]


def row_expectations(
    frame: pd.DataFrame, train: pd.DataFrame, classes: list[str] | None, spec: dict[str, Any], *, rows: int
) -> list[Expectation]:
    """What is expected of each row of a split, for its frame or for that of a part of it.

    Args:
        train: a frame with the same columns and ranges as train; ``frame`` itself where that is of train.
        rows: of the whole split.
        The others as for :func:`split_expectations`.
    """
    found = [] if classes is None else [_known_classes(classes)]
    for name, (column, description, remedy) in _REPEATS.items():
        if spec[name] != "skip":
            check = DataCheck(name, _SEVERITY[spec[name]], f"{remedy}, or set data.{name}: {_WEAKER[spec[name]]}")
            found.append(check(gxe.ExpectColumnValuesToBeNull, description, column=column))
    for column in frame.columns:
        if column not in (*REPEATS, *([TARGET] if classes is not None else [])):
            found += _column(str(column), frame, train, spec, rows)
    found += list(_ranges(frame, spec["ranges"]))
    return found


def _rows(least: int) -> Expectation:
    check = DataCheck("rows", "critical", _MORE_ROWS)
    return check(gxe.ExpectTableRowCountToBeBetween, f"There are at least {least} rows", min_value=least)


def _known_classes(classes: list[str]) -> Expectation:
    valid = DataCheck("target", "critical", "number the classes from 0 without gaps, as many as there are labels")
    return valid(gxe.ExpectColumnValuesToBeInSet, "Every target is a known class", column=TARGET, value_set=classes)


def present_classes(classes: list[str], *, train: bool) -> list[Expectation]:
    """About a split's classes together: a frame with each that occurs, at least once, as ``target``."""
    present = DataCheck("classes", "warning", "give every split rows of every class")
    found = [
        present(gxe.ExpectColumnDistinctValuesToContainSet, "Every class occurs", column=TARGET, value_set=classes)
    ]
    if train:
        several = DataCheck("classes", "critical", "bring rows of another class: one alone needs no model")
        says = "There are two classes or more"
        found.append(several(gxe.ExpectColumnUniqueValueCountToBeBetween, says, column=TARGET, min_value=2))
    return found


def _column(
    column: str, frame: pd.DataFrame, train: pd.DataFrame, spec: dict[str, Any], rows: int
) -> Iterator[Expectation]:
    if spec["missing"] != "skip":
        where = "where preprocess fills values in, " if spec["missing"] == "fail" else ""
        remedy = f"repair or drop these rows, or {where}set data.missing: {_WEAKER[spec['missing']]}"
        check = DataCheck("missing", _SEVERITY[spec["missing"]], remedy)
        if column.endswith(".nonfinite"):
            yield check(gxe.ExpectColumnValuesToBeBetween, "No value is NaN or infinite", column=column, max_value=0)
        else:
            yield check(gxe.ExpectColumnValuesToNotBeNull, "No value is missing or infinite", column=column)
    if spec["unfamiliar"] == "skip" or frame is train or column not in train or column.endswith(".nonfinite"):
        return
    check = DataCheck(
        "unfamiliar",
        _SEVERITY[spec["unfamiliar"]],
        "look whether these rows come from elsewhere; widen data.range_tolerance if they are right",
    )
    mostly = max(0.0, 1 - max(_STRAYS[0], _STRAYS[1] / rows) - 1e-9)
    if not pd.api.types.is_numeric_dtype(train[column]):
        known = sorted(train[column].dropna().unique().tolist())
        yield check(
            gxe.ExpectColumnValuesToBeInSet,
            "Values are among those of train",
            column=column,
            value_set=known,
            mostly=mostly,
        )
        return
    lowest, highest = float(train[column].min()), float(train[column].max())
    if lowest <= highest:  # not where train has no value at all
        room = (highest - lowest) * spec["range_tolerance"]
        yield check(
            gxe.ExpectColumnValuesToBeBetween,
            f"Values stay near the range of train, {lowest:.6g} to {highest:.6g}",
            column=column,
            min_value=lowest - room,
            max_value=highest + room,
            mostly=mostly,
        )


def _ranges(frame: pd.DataFrame, ranges: dict[str, Any]) -> Iterator[Expectation]:
    for column, (lowest, highest) in ranges.items():
        check = DataCheck("range", "critical", f"repair these rows, or correct data.ranges.{column}")
        says = f"{column} lies in [{_limit(lowest)}, {_limit(highest)}]"
        # A tensor is described by its smallest and largest value in each row.
        tensor = column not in frame and f"{column}.min" in frame
        for name, low, high in (
            [(f"{column}.min", lowest, None), (f"{column}.max", None, highest)]
            if tensor
            else [(column, lowest, highest)]
        ):
            if low is not None or high is not None:
                yield check(gxe.ExpectColumnValuesToBeBetween, says, column=name, min_value=low, max_value=high)


def _limit(value: float | None) -> str:
    return "no limit" if value is None else f"{value:g}"
