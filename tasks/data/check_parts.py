"""All checks of splits that do not fit the memory: a partition at a time, and the results of all added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
from great_expectations.core.expectation_validation_result import (
    ExpectationSuiteValidationResult,
    ExpectationValidationResult,
)

from tasks.data.check_splits import has_classes, settled_spec
from tasks.data.checking import SHOWN, Assets, Checked, Finding, finding_of, run_checks, validate_frames
from tasks.data.column_signs import column_frame
from tasks.data.expectations import (
    class_expectations,
    column_expectations,
    present_classes,
    row_expectations,
    schema_expectations,
    size_expectations,
)
from tasks.data.frames import (
    MAX_CLASSES,
    class_counts,
    class_frame,
    class_name,
    classes_there_may_be,
    schema_frame,
    split_frame,
)
from tasks.data.repeats import Repeats, find_repeats
from tasks.data.split_files import SplitFiles
from tasks.running.splits import SPLITS, TARGET, Columns
from tasks.running.task_kind import TaskKind

OwnFrame = Callable[[Columns], "pd.DataFrame | None"]


def check_parts(
    files: SplitFiles,
    *,
    task: TaskKind,
    labels: tuple[str, ...] | None,
    own_frame: OwnFrame,
    spec: dict[str, Any],
    fills_missing: bool,
    sample: dict[str, Columns],
) -> Checked:
    """The checks of :func:`tasks.data.check_splits.check_splits`, with one partition in memory.

    Repeated rows are looked for within a partition: a workload puts equal rows into the same one. Signs of columns
    are looked for in the first partition.

    Args:
        files: the splits, all partitions stored.
        sample: the first partition before it was stored.
        The others as for ``check_splits``.

    Raises:
        WorkloadError: the workload's frame has another number of rows than its split.
    """
    spec = settled_spec(spec, fills_missing=fills_missing)
    ranges, counts = _Ranges(), {name: Counter[int]() for name in files.rows}
    has_class = has_classes(task, files.slices("train")[TARGET])
    for part in files.parts:
        for split, (first, last) in part.items():
            columns = files.slices(split, first, last)
            if has_class:
                counts[split].update(class_counts(columns[TARGET]))
            if split == "train":
                none: list[str | None] = [None] * (last - first)
                ranges.add(split_frame(columns, Repeats(none, none, none), labels, own_frame(columns)))
    classes = classes_there_may_be(max(counts["train"]), labels) if has_class else None

    whole = run_checks(_together(files, counts, classes, labels, own_frame, spec, sample))
    merged = {name: _Merged(name) for name in SPLITS if name in files.rows}
    for part in files.parts:
        splits = {name: files.slices(name, *rows) for name, rows in part.items()}
        repeats = find_repeats(splits, {name: first for name, (first, _) in part.items()})
        assets: Assets = {}
        for name, (first, last) in part.items():
            frame = split_frame(splits[name], repeats[name], labels, own_frame(splits[name]))
            frame.index = pd.RangeIndex(first, last)
            train = frame if name == "train" else ranges.frame
            assets[name] = (frame, row_expectations(frame, train, classes, spec, rows=files.rows[name]))
        for name, result in validate_frames(assets).items():
            merged[name].add(result, assets[name][0], files.source_rows(name, *part[name]))
    for one in merged.values():
        one.conclude(whole)
    whole.sort()
    return whole


def _together(
    files: SplitFiles,
    counts: Mapping[str, Mapping[int, int]],
    classes: list[str] | None,
    labels: tuple[str, ...] | None,
    own_frame: OwnFrame,
    spec: dict[str, Any],
    sample: dict[str, Columns],
) -> Assets:
    """What is expected of all rows together: small frames that were counted over the partitions."""
    few = {name: files.slices(name, 0, 1) for name in files.rows}
    rows = pd.DataFrame([{"split": name, "rows": count} for name, count in files.rows.items()])
    assets: Assets = {
        "types": (schema_frame(few), schema_expectations()),
        "rows": (rows, size_expectations(spec)),
    }
    if set(SPLITS) <= set(sample):
        signs = column_frame(sample, own_frame, rows=sum(files.rows.values()))
        if len(signs):
            assets["columns"] = (signs, column_expectations(spec))
    if classes is not None:
        for name, found in counts.items():
            there = pd.DataFrame({TARGET: pd.Series([class_name(value, labels) for value in found], dtype="str")})
            assets[f"classes of {name}"] = (there, present_classes(classes, train=name == "train"))
        if len(classes) <= MAX_CLASSES:
            ordered = {name: dict(sorted(found.items())) for name, found in counts.items()}
            assets["classes"] = (class_frame(ordered, labels), class_expectations(spec))
    return assets


class _Ranges:
    """What values the train rows have in each column: lowest and highest number, or all texts."""

    def __init__(self) -> None:
        self._found: dict[str, pd.Series[Any]] = {}

    def add(self, frame: pd.DataFrame) -> None:
        for name, values in frame.items():
            there = values.dropna()
            if pd.api.types.is_numeric_dtype(values):
                there = pd.Series([there.min(), there.max()], dtype="float64") if len(there) else there
            before = self._found.get(str(name))
            together = there if before is None else pd.concat([before, there])
            if before is not None and pd.api.types.is_numeric_dtype(together):
                together = pd.Series([together.min(), together.max()], dtype="float64")
            self._found[str(name)] = together.drop_duplicates().reset_index(drop=True)

    @property
    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self._found)


class _Merged:
    """The results of one split's partitions, added up as if they were one."""

    def __init__(self, split: str) -> None:
        self._split = split
        self._whole: ExpectationSuiteValidationResult | None = None
        self._found: dict[int, Finding] = {}

    def add(self, result: ExpectationSuiteValidationResult, frame: pd.DataFrame, source: Any) -> None:
        first = int(frame.index[0])
        for place, one in enumerate(result.to_json_dict()["results"]):
            if not one["success"] or one["result"].get("unexpected_count"):
                found = finding_of(self._split, one, frame, source, first=first)
                before = self._found.get(place)
                self._found[place] = found if before is None else _joined(before, found)
        for one in result.results:
            for name in [name for name in one.result if "list" in name or "counts" in name]:
                del one.result[name]  # of the rows that the findings name
        if self._whole is None:
            self._whole = result
            return
        for total, one in zip(self._whole.results, result.results, strict=True):
            _add_up(total, one)

    def conclude(self, checked: Checked) -> None:
        """Say what was found, once all partitions are there."""
        assert self._whole is not None
        for place, one in enumerate(self._whole.results):
            found = self._found.get(place)
            if found is None or (not found.could_not_run and _mostly_met(one)):
                one.success, checked.passed = True, checked.passed + 1
            else:
                one.success = False
                checked.findings.append(found)
        self._whole.success = all(one.success for one in self._whole.results)
        checked.results[self._split] = self._whole


def _add_up(total: ExpectationValidationResult, one: ExpectationValidationResult) -> None:
    for name in ("element_count", "unexpected_count", "missing_count"):
        if name in total.result or name in one.result:
            total.result[name] = total.result.get(name, 0) + one.result.get(name, 0)
    rows = max(total.result.get("element_count", 0), 1)
    for name, count in (("unexpected_percent", "unexpected_count"), ("missing_percent", "missing_count")):
        if name in total.result:
            total.result[name] = 100 * total.result.get(count, 0) / rows


def _mostly_met(one: ExpectationValidationResult) -> bool:
    """As Great Expectations decides it for one frame: of the values that are there, ``mostly`` are as expected."""
    there = one.result.get("element_count", 0) - one.result.get("missing_count", 0)
    met = there - one.result.get("unexpected_count", 0)
    mostly: float = one.expectation_config.kwargs.get("mostly", 1.0)
    return bool(there == 0 or met / there >= mostly)


def _joined(before: Finding, more: Finding) -> Finding:
    return replace(
        before,
        count=before.count + more.count,
        rows=(*before.rows, *more.rows)[:SHOWN],
        examples=(*before.examples, *more.examples)[:SHOWN],
        source_rows=(*before.source_rows, *more.source_rows)[:SHOWN],
        could_not_run=before.could_not_run or more.could_not_run,
    )
