"""All checks over all splits: from arrays to findings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.data.checking import Checked, run_checks
from tasks.data.column_signs import column_frame
from tasks.data.expectations import (
    class_expectations,
    column_expectations,
    schema_expectations,
    split_expectations,
)
from tasks.data.frames import MAX_CLASSES, class_counts, class_frame, classes_there_may_be, schema_frame, split_frame
from tasks.data.repeats import find_repeats
from tasks.running.splits import TARGET, Columns
from tasks.running.task_kind import CHOICES, TaskKind


def check_splits(
    splits: dict[str, Columns],
    *,
    task: TaskKind,
    labels: tuple[str, ...] | None,
    own_frame: Callable[[Columns], pd.DataFrame | None],
    spec: dict[str, Any],
    fills_missing: bool = False,
    source_rows: Mapping[str, NDArray[Any]] | None = None,
    given: dict[str, Columns] | None = None,
) -> Checked:
    """Check every split by itself and against the others.

    Args:
        splits: arrays [rows, ...] by split and column; ``target`` among them.
        task: ``classes`` or ``binary`` where the target is a class.
        labels: names of the classes; without them the classes are 0 up to the highest in train.
        own_frame: the workload's frame of a split, or None for the default.
        spec: the fields of :class:`tasks.data.DataSpec`.
        fills_missing: whether the workload fills missing values in.
        source_rows: per split, where its rows come from, to name them in findings.
        given: the splits before they were stored, which shows what is lost by it; by default ``splits``.

    Raises:
        WorkloadError: the workload's frame has another number of rows than its split.
    """
    spec = settled_spec(spec, fills_missing=fills_missing)
    repeats = find_repeats(splits)
    frames = {name: split_frame(columns, repeats[name], labels, own_frame(columns)) for name, columns in splits.items()}
    classes = None
    target = splits["train"][TARGET]
    if has_classes(task, target):
        classes = classes_there_may_be(int(target.max()), labels)
    assets = {"types": (schema_frame(splits), schema_expectations())}
    signs = column_frame(given or splits, own_frame)
    if len(signs):
        assets["columns"] = (signs, column_expectations(spec))
    for name, frame in frames.items():
        assets[name] = (frame, split_expectations(frame, frames["train"], classes, spec))
    if classes is not None and len(classes) <= MAX_CLASSES:
        assets["classes"] = (
            class_frame({n: class_counts(c[TARGET]) for n, c in splits.items()}, labels),
            class_expectations(spec),
        )
    return run_checks(assets, source_rows)


def has_classes(task: TaskKind, target: NDArray[Any]) -> bool:
    """Whether each row's target is one class."""
    return task in CHOICES and target.ndim == 1 and bool(np.issubdtype(target.dtype, np.integer))


def settled_spec(spec: dict[str, Any], *, fills_missing: bool) -> dict[str, Any]:
    """The fields of DataSpec, with what is done about missing values where the user did not say."""
    return spec | {"missing": spec["missing"] or ("warn" if fills_missing else "fail")}
