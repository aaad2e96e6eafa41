"""Texts with labels in many files, larger than the memory: their splits a partition at a time."""

from __future__ import annotations

import base64
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_registry.variant import Frozen
from tasks.readers.class_labels import label_order
from tasks.readers.kept_columns import Unlabelled, is_missing
from tasks.readers.labelled_texts import Row, hash_texts, rows_of_texts
from tasks.readers.reading import Reading, listed, rows_text
from tasks.readers.row_buckets import KEYS, RowBuckets, Rows, drawn_splits, hash_rows, hash_text
from tasks.readers.source_parts import RowBlock, part_names, read_blocks
from tasks.readers.splitting import FRACTIONS, Divided
from tasks.running.errors import DataReadError
from tasks.running.splits import SPLITS, TARGET
from tasks.workloads.text_tokenizer import new_tokenizer

_PART_BYTES = 8 << 20
"""Rows that a partition holds at least, but for the last one."""
_ENCODED_ROWS = 1024
"""At a time: the tokenizer fills them up to the longest, and takes some hundred bytes for each token meanwhile."""
_MAX_CLASSES = 10_000
LOST = (
    "{lost} rows were left out: cut at {tokens} tokens, or without what the tokenizer ignores, they are the texts of "
    "rows in another split"
)
_SPOKEN = {"U": "text", "b": "true or false", "i": "whole numbers", "u": "whole numbers"}

Encode = Callable[[list[Row]], NDArray[np.int64]]
"""Texts to their token ids [rows, tokens]."""


class TextFacts(Frozen):
    """What all texts tell, as plain JSON, so that whoever trains need not read them again."""

    labels: tuple[str, ...]
    packed: str
    """The tokenizer that was trained on them, packed: of its JSON four fifths say the same twice. Empty: none was."""

    @property
    def tokenizer(self) -> str:
        return zlib.decompress(base64.b64decode(self.packed)).decode() if self.packed else ""


@dataclass(frozen=True)
class _Block:
    """Rows that have a label: the ``split`` [rows] of each by its number, and its ``row`` in the source."""

    texts: list[Row]
    labels: list[str]
    draw: NDArray[np.uint64]
    split: NDArray[np.intp]
    row: NDArray[np.intp]


class TextParts:
    """The texts of all files, divided by what they are.

    The hash of a text decides its split, so that depends on no other one and not on the file that it is in. Texts of
    other wording with the same tokens are in one split only: the test split keeps its rows, then validation,
    calibration, train. Labels are those of the train texts, and so is the tokenizer, where one is trained.

    Args:
        source: a pattern of files.
        columns: of the texts, one or two. ``target``: of the labels.
        vocabulary: tokens of the tokenizer that is trained on the train texts; None: there is another one.
        The others as for :class:`tasks.workloads.text.Text`.
    """

    def __init__(
        self,
        source: str,
        columns: tuple[str, ...],
        target: str,
        *,
        tokens: int,
        vocabulary: int | None,
        seed: int,
        unlabelled: Unlabelled,
        delimiter: str | None,
    ) -> None:
        self.source, self.columns, self.target, self.tokens = source, columns, target, tokens
        self.vocabulary, self.seed, self.unlabelled, self.delimiter = vocabulary, seed, unlabelled, delimiter

    @cached_property
    def facts(self) -> TextFacts:
        """What all texts tell; reads all files, unless it was given.

        Raises:
            DataReadError: the files cannot be read, do not fit each other, or are too few.
        """
        counts = {split: Counter[str]() for split in SPLITS}
        texts = self._train_texts(counts)
        packed = ""
        if self.vocabulary is None:
            for _ in texts:
                pass
        else:
            made = new_tokenizer(texts, size=self.vocabulary).to_str()
            packed = base64.b64encode(zlib.compress(made.encode(), 9)).decode()
        empty = [split for split, found in counts.items() if not found]
        if empty:
            rows = sum(found.total() for found in counts.values())
            raise DataReadError(
                f"{self.source}: {rows} rows are too few to divide: {listed(empty)} would be empty; bring more"
            )
        labels = sorted(counts["train"], key=label_order)
        if len(labels) < 2:
            raise DataReadError(
                f"column {self.target!r} of train has only the value {labels[0]!r}; at least two classes are needed"
            )
        return TextFacts(labels=tuple(labels), packed=packed)

    def divided(self, folder: Path, encode: Encode) -> Iterator[Divided]:
        """The splits, partition by partition; the first says how the files were understood. Rows of the source are
        counted through all files, in the order of their names.

        Args:
            folder: for the tokens, which lie there until the last partition was taken.

        Raises:
            DataReadError: as for :attr:`facts`.
        """
        codes = {label: code for code, label in enumerate(self.facts.labels)}
        fields = [*KEYS, ("split", "u1"), ("label", "<i4"), ("tokens", "<i4", (self.tokens,))]
        buckets, found = RowBuckets(folder / "rows", np.dtype(fields)), Counter[str]()
        for block in self._blocks(found):
            rows = np.zeros(len(block.texts), buckets.dtype)
            for start in range(0, len(rows), _ENCODED_ROWS):
                few = slice(start, start + _ENCODED_ROWS)
                rows["tokens"][few] = encode(block.texts[few])
            rows["hash"], _ = hash_rows(np.ascontiguousarray(rows["tokens"]).view(np.uint8), self.seed)
            rows["draw"], rows["split"], rows["row"] = block.draw, block.split, block.row
            rows["label"] = [codes.get(label, -1) for label in block.labels]
            rows["answer"] = [hash_text(label) for label in block.labels]
            buckets.add(rows)
        buckets.sort()
        lost = sum(int((~_in_one_split(rows)).sum()) for rows in buckets)
        reading = self._reading(found, lost)
        for rows in buckets.joined(_PART_BYTES):
            kept = rows[_in_one_split(rows)]
            chosen = {split: kept[kept["split"] == number] for number, split in enumerate(SPLITS)}
            yield Divided(
                {
                    split: {"tokens": part["tokens"].astype(np.int64), TARGET: part["label"].astype(np.int64)}
                    for split, part in chosen.items()
                },
                {split: part["row"].copy() for split, part in chosen.items()},
                reading,
            )
            reading = Reading()

    def _train_texts(self, counts: dict[str, Counter[str]]) -> Iterator[str]:
        """The texts of the train rows; ``counts``: of the labels by split, when the last one was taken."""
        for block in self._blocks(Counter()):
            for texts, label, split in zip(block.texts, block.labels, block.split.tolist(), strict=True):
                counts[SPLITS[split]][label] += 1
                if SPLITS[split] == "train":
                    yield from texts
            if len(counts["train"]) > _MAX_CLASSES:
                raise DataReadError(
                    f"{self.source}: column {self.target!r} has more than {_MAX_CLASSES} different values in train; "
                    "name what holds the classes by `target`, or join classes"
                )

    def _blocks(self, found: Counter[str]) -> Iterator[_Block]:
        """All rows that have a label; ``found`` counts those and the others."""
        first, kind = "", ""
        wanted = (*self.columns, self.target)
        for block in read_blocks(self.source, delimiter=self.delimiter, texts=self.columns, columns=wanted):
            where = f"{block.name}, counted from its row {block.start}" if block.start else block.name
            if _is_empty(block, self.target):  # of which nothing tells the kind
                if self.unlabelled == "refuse":
                    raise DataReadError(
                        f"{where}: {rows_text(range(block.rows))} of {block.rows} have no {self.target!r} to predict; "
                        "fill it in, or leave these rows out by `unlabelled: drop`"
                    )
                found["unlabelled"] += block.rows
                continue
            table, kept = rows_of_texts(
                block.columns, self.columns, self.target, unlabelled=self.unlabelled, where=where
            )
            here = _SPOKEN.get(table[self.target].dtype.kind, "numbers")
            first, kind = (first, kind) if first else (block.name, here)
            if here != kind:
                raise DataReadError(
                    f"{block.name} holds {here} in column {self.target!r}, and {first} {kind}; make it the same in all "
                    "files"
                )
            texts: list[Row] = list(zip(*(map(str, table[name].tolist()) for name in self.columns), strict=True))
            _, draw = hash_rows(hash_texts(texts), self.seed)
            split = np.zeros(len(texts), np.intp)
            for name, places in drawn_splits(draw, FRACTIONS).items():
                split[places] = SPLITS.index(name)
            found["rows"] += len(texts)
            found["unlabelled"] += block.rows - len(kept)
            yield _Block(texts, [str(v) for v in table[self.target].tolist()], draw, split, block.first + kept)

    def _reading(self, found: Counter[str], lost: int) -> Reading:
        files = len(part_names(self.source))
        names = listed(self.columns)
        fact = f"{self.source}: {files} file{'s' * (files != 1)}, {found['rows']} rows. Texts: {names}."
        findings = []
        if found["unlabelled"]:
            findings.append(f"{self.source}: {found['unlabelled']} rows without a target were left out")
        if lost:
            findings.append(LOST.format(lost=lost, tokens=self.tokens))
        return Reading((fact,), tuple(findings))


def _in_one_split(rows: Rows) -> NDArray[np.bool_]:
    """Which of these rows, sorted by the hash of their tokens, are in the split that keeps such tokens: the last one of
    :data:`tasks.running.splits.SPLITS` that has any."""
    if not len(rows):
        return np.zeros(0, np.bool_)
    begins = np.concatenate([[True], rows["hash"][1:] != rows["hash"][:-1]])
    starts = np.flatnonzero(begins)
    keeps: NDArray[Any] = np.maximum.reduceat(rows["split"], starts)
    return np.asarray(rows["split"] == keeps[np.cumsum(begins) - 1])


def _is_empty(block: RowBlock, target: str) -> bool:
    values = block.columns[target]
    return values.dtype.kind != "O" and bool(is_missing(values).all())
