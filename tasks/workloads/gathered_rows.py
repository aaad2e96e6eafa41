"""Rows of a table's files, gathered on disk in the order of what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.readers.kept_columns import is_missing
from tasks.readers.reading import Reading, kinds_sentence, listed
from tasks.readers.row_buckets import KEYS, RowBuckets, Rows, hash_rows, hash_text
from tasks.readers.source_parts import RowBlock, part_names
from tasks.running.errors import DataReadError
from tasks.running.splits import TARGET, Columns
from tasks.workloads.table_facts import TableFacts, TableTask, TrainTally
from tasks.workloads.table_features import checked_categories

_MAX_CLASSES = 10_000
_MAX_TEXTS = 1000
_EXACT = 2**53


class GatheredRows:
    """Rows of all files in buckets, and what is known of their columns.

    Attributes:
        names: of the columns, in the order of the first file.
        codes, answers: numbers of the texts of each column, and of the target, in the order in which they came.

    Numbers are kept as 64 bits and texts by their codes: what they are to the model is known when all rows are there.
    """

    def __init__(self, folder: Path, source: str, first: Columns, findings: tuple[str, ...]) -> None:
        self.source, self.names = source, list(first)
        self.texts = sorted(name for name, values in first.items() if values.dtype.kind == "U")
        self.numbers = sorted(set(first) - set(self.texts))
        self.files = part_names(source)
        self.codes: dict[str, dict[str, int]] = {name: {} for name in self.texts}
        self.answers: dict[str, int] = {}
        self._target_type: np.dtype[Any] | None = None
        self.rows, self.unlabelled = 0, 0
        fields = [*KEYS, ("numbers", "<f8", (len(self.numbers),)), ("codes", "<i4", (len(self.texts),))]
        self.buckets = RowBuckets(folder, np.dtype([*fields, ("target", "<f8")]))
        self._findings = findings

    @property
    def reading(self) -> Reading:
        kinds = {name: "text" if name in self.texts else "numbers" for name in self.names}
        files = f"{len(self.files)} file{'s' * (len(self.files) != 1)}"
        facts = f"{self.source}: {files}, {self.rows} rows. {kinds_sentence(kinds)}"
        left = (f"{self.source}: {self.unlabelled} rows without a target were left out",) if self.unlabelled else ()
        return Reading((facts,), (*self._findings, *left))

    def add(self, columns: Columns, target: NDArray[Any], kept: NDArray[np.intp], block: RowBlock, seed: int) -> None:
        """A block's rows; ``kept``: their numbers in it."""
        odd = sorted(set(columns) ^ set(self.names))
        if odd:
            raise DataReadError(
                f"{block.name}: the columns {listed(odd)} are in some files of {self.source} and not in others; give "
                "all files the same columns"
            )
        rows = np.zeros(len(target), self.buckets.dtype)
        for place, name in enumerate(self.numbers):
            rows["numbers"][:, place] = self._number(columns[name], name, block)
        for place, name in enumerate(self.texts):
            rows["codes"][:, place] = self._coded(columns[name], name, block, self.codes[name], _MAX_TEXTS)
        rows["target"] = self._target(target, block)
        rows["hash"], rows["draw"] = hash_rows(self._content(rows), seed)
        rows["answer"] = (rows["target"] + 0.0).view("<u8")
        if self.answers:
            rows["answer"] = _hashes(self.answers)[rows["target"].astype(np.intp)]
        rows["row"] = block.first + kept
        self.rows += len(rows)
        self.unlabelled += block.rows - len(kept)
        self.buckets.add(rows)

    def facts(self, task: TableTask) -> TableFacts:
        """What the train rows tell, once all rows are there and sorted.

        Raises:
            DataReadError: too few rows, too many classes or categories, or a text to predict as a number.
        """
        spelled = bool(self.answers)
        whole = self._target_type is not None and self._target_type.kind in "iub"
        tally = TrainTally(task, texts=spelled, whole=whole, most=_MAX_CLASSES)
        scale, target_scale = tally.scales(self.buckets)
        empty = [name for name, count in tally.rows.items() if not count]
        if empty:
            raise DataReadError(
                f"{self.source}: {self.rows} rows are too few to divide: {listed(empty)} would be empty; bring more"
            )
        if spelled and not tally.is_class:
            raise DataReadError(f"{self.source}: the target holds text; a number is needed for regression")
        labels = self._labels(np.array(sorted(tally.targets)))
        order = [self.numbers.index(name) for name in self.names if name not in self.texts]
        categories = {}
        for place, name in enumerate(self.texts):
            known = list(self.codes[name])
            categories[name] = tuple(checked_categories(name, {known[c] for p, c in tally.codes if p == place}))
        return TableFacts(
            names=tuple(self.names),
            categories=categories,
            texts={
                name: (*own, *sorted(text for text in set(self.codes[name]) - set(own) if text))
                for name, own in categories.items()
            },
            mean=tuple(scale.mean[order].tolist()),
            deviation=tuple(scale.deviation[order].tolist()),
            classes=(tuple(sorted(labels) if spelled else labels)) if tally.is_class else None,
            # Of texts the numbers are those of the order in which they came.
            target_mean=0.0 if tally.is_class else float(target_scale.mean[0]),
            target_deviation=1.0 if tally.is_class else float(target_scale.deviation[0]),
        )

    def encoded(self, rows: Rows, facts: TableFacts) -> Columns:
        """Rows as the model's columns: ``features`` [rows, columns] and ``target`` [rows]."""
        features = np.empty((len(rows), len(self.names)))
        for place, name in enumerate(self.names):
            if name in self.texts:
                numbers = {text: float(number) for number, text in enumerate(facts.texts[name])}
                of_code = np.array([numbers.get(text, np.nan) for text in self.codes[name]])
                features[:, place] = of_code[rows["codes"][:, self.texts.index(name)]]
            else:
                features[:, place] = rows["numbers"][:, self.numbers.index(name)]
        if facts.classes is None:
            return {"features": features, TARGET: rows["target"].copy()}
        known = {label: number for number, label in enumerate(facts.classes)}
        values, inverse = np.unique(rows["target"], return_inverse=True)
        numbers_of = np.array([known.get(label, -1) for label in self._labels(values)], dtype=np.int64)
        return {"features": features, TARGET: numbers_of[inverse] if len(rows) else np.empty(0, np.int64)}

    def _labels(self, values: NDArray[np.float64]) -> list[str]:
        """What target values are called."""
        if self.answers:
            texts = list(self.answers)
            return [texts[int(value)] for value in values.tolist()]
        return [str(value) for value in values.astype(self._target_type).tolist()]

    def _content(self, rows: Rows) -> NDArray[np.uint8]:
        """What makes rows the same row: the bytes [rows, bytes] of what the model sees of their inputs."""
        with np.errstate(over="ignore"):
            seen = rows["numbers"].astype(np.float32) + np.float32(0)  # -0.0 becomes 0.0
        seen[np.isnan(seen)] = np.nan
        parts = [seen.view(np.uint8)] if self.numbers else []
        for place, name in enumerate(self.texts):
            parts.append(_hashes(self.codes[name])[rows["codes"][:, place]].view(np.uint8).reshape(len(rows), -1))
        return np.concatenate(parts, axis=1)

    def _number(self, values: NDArray[Any], name: str, block: RowBlock) -> NDArray[np.float64]:
        if values.dtype.kind == "U":
            if is_missing(values).all():
                return np.full(len(values), np.nan)
            raise _other_kind(block, name, "text", "numbers")
        numbers = values.astype(np.float64)
        return np.where(np.isfinite(numbers), numbers, np.nan)

    def _coded(
        self, values: NDArray[Any], name: str, block: RowBlock, codes: dict[str, int], most: int
    ) -> NDArray[np.int32]:
        if values.dtype.kind != "U":
            if not is_missing(values).all():
                raise _other_kind(block, name, "numbers", "text")
            values = np.full(len(values), "")
        texts, inverse = np.unique(values, return_inverse=True)
        found = [codes.setdefault(text if text.strip() else "", len(codes)) for text in texts.tolist()]
        if len(codes) > most:
            raise DataReadError(
                f"{self.source}: {name} has more than {most} different texts; leave it out by `drop`, or encode it as "
                "numbers"
            )
        return np.array(found, dtype=np.int32)[inverse]

    def _target(self, values: NDArray[Any], block: RowBlock) -> NDArray[np.float64]:
        before = self._target_type
        if before is not None and (before.kind == "U") != (values.dtype.kind == "U"):
            here, there = ("numbers", "text") if before.kind == "U" else ("text", "numbers")
            raise _other_kind(block, "the target", here, there)
        self._target_type = values.dtype if before is None or before.kind == "U" else np.result_type(before, values)
        if values.dtype.kind == "U":
            return self._coded(values, "the target", block, self.answers, _MAX_CLASSES).astype(np.float64)
        if values.dtype.kind in "iu" and len(values) and max(abs(int(values.min())), abs(int(values.max()))) > _EXACT:
            raise DataReadError(f"{block.name}: the target has whole numbers beyond 2**53, which are no longer exact")
        return values.astype(np.float64)


def _hashes(texts: Mapping[str, int]) -> NDArray[np.uint64]:
    return np.array([hash_text(text) for text in texts], dtype=np.uint64)


def _other_kind(block: RowBlock, name: str, here: str, before: str) -> DataReadError:
    return DataReadError(
        f"{block.name}: {name} holds {here}, and {before} in the files before; make it the same in all files"
    )
