"""Images of many files, gathered on disk in the order of what they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_registry.variant import Frozen
from tasks.readers.class_labels import label_order
from tasks.readers.image_pixels import image_reading, with_channels
from tasks.readers.reading import Reading, counts_text, listed
from tasks.readers.row_buckets import KEYS, RowBuckets, Rows, drawn_splits, hash_rows, hash_text
from tasks.running.errors import DataReadError
from tasks.running.splits import SPLITS, TARGET, Columns

_PART_BYTES = 8 << 20
"""Rows that a partition holds at least, but for the last one."""
_BLOCK_BYTES = 4 << 20
"""Rows that are brought to disk together."""
_MAX_CLASSES = 10_000


class ImageFacts(Frozen):
    """What all images tell, as plain JSON, so that whoever trains need not read them again."""

    shape: tuple[int, int, int]
    """Channels, height and width."""
    classes: tuple[str, ...]


class GatheredImages:
    """Images in buckets, and what is known of them.

    All are kept in colour, unless grey is asked for: whether any image has colour is known when all are there.

    Attributes:
        left: what was left out, by what it is.

    Args:
        folder: for the pixels; is made.
        source: of the images, for people.
        channels: 1 or 3; None: 3 where any image has colour.
        seed: of the division.
    """

    def __init__(self, folder: Path, source: str, *, channels: int | None, seed: int) -> None:
        self.left = Counter[str]()
        self._folder, self._source, self._seed = folder, source, seed
        self._channels, self._stored = channels, channels or 3
        self._modes, self._classes = Counter[str](), {split: Counter[str]() for split in SPLITS}
        self._labels: dict[str, int] = {}
        """Numbers of the classes, in the order in which they came."""
        self._coloured = False
        self._samples = 0
        self._first = ""
        self._shares: Mapping[str, float] = {}
        self._held: list[tuple[NDArray[np.uint8], str, int]] = []
        self._buckets: RowBuckets | None = None

    def begin(self, shares: Mapping[str, float]) -> None:
        """What comes now is divided by these shares."""
        self._flush()
        self._shares = shares

    def leave_out(self, what: str) -> None:
        """Count a sample that is not an example."""
        self.left[what] += 1
        self._samples += 1

    def add(self, pixels: NDArray[np.uint8], mode: str, label: str, *, where: str) -> None:
        """An image [channels, height, width]; its mode as :func:`tasks.readers.image_pixels.read_pixels` says it.

        Raises:
            DataReadError: it has another size than the first, or there are too many classes.
        """
        height, width = pixels.shape[1:]
        if self._buckets is None:
            fields = [*KEYS, ("split", "u1"), ("label", "<i4"), ("image", "u1", (self._stored, height, width))]
            self._buckets, self._first = RowBuckets(self._folder, np.dtype(fields)), where
        wanted = self._buckets.dtype["image"].shape[1:]
        if (height, width) != wanted:
            raise DataReadError(
                f"{where} is {height} x {width} and {self._first} {wanted[0]} x {wanted[1]} pixels (height x width); "
                "set `size: [height, width]` to scale all to one size"
            )
        self._labels.setdefault(label, len(self._labels))
        if len(self._labels) > _MAX_CLASSES:
            raise DataReadError(
                f"{self._source}: there are more than {_MAX_CLASSES} classes, {label[:60]!r} for one; name what holds "
                "the classes by `target`, or join classes"
            )
        self._modes[mode] += 1
        self._coloured = self._coloured or len(pixels) == 3
        self._held.append((with_channels(pixels[None], self._stored)[0], label, self._samples))
        self._samples += 1
        if len(self._held) * self._buckets.dtype.itemsize >= _BLOCK_BYTES:
            self._flush()

    def finish(self) -> None:
        """Bring all into order; DataReadError where there is no image."""
        self._flush()
        if self._buckets is None:
            raise DataReadError(
                f"{self._source}: no sample has an image and a label; in a tar file the files of a sample share their "
                f"name up to its first dot and stand one after another; {self._left_out()}"
            )
        self._buckets.sort()

    def facts(self) -> ImageFacts:
        """What the images tell, once all are there.

        Raises:
            DataReadError: a split is empty, or train has one class.
        """
        assert self._buckets is not None  # finish() came before
        empty = [split for split, counts in self._classes.items() if not counts]
        if empty:
            images = sum(self._modes.values())
            raise DataReadError(
                f"{self._source}: {images} images are too few to divide: {listed(empty)} would be empty; bring more"
            )
        classes = sorted(self._classes["train"], key=label_order)
        if len(classes) < 2:
            raise DataReadError(
                f"{self._source}: all images of train are of one class, {classes[0]!r}; at least two are needed"
            )
        channels = self._channels or (3 if self._coloured else 1)
        height, width = self._buckets.dtype["image"].shape[1:]
        return ImageFacts(shape=(channels, height, width), classes=tuple(classes))

    def reading(self, facts: ImageFacts) -> Reading:
        """What was read and how."""
        counts = sum(self._classes.values(), Counter[str]())
        by_class = {label: counts[label] for label in sorted(counts, key=label_order)}
        told = image_reading(self._source, by_class, self._modes, (counts.total(), *facts.shape))
        strange = {label: count for label, count in by_class.items() if label not in facts.classes}
        found = [f"{self._source}: not in train are the classes {counts_text(strange)}"] if strange else []
        left = [f"{self._source}: {self._left_out()}"] if self.left else []
        return told + Reading(findings=(*found, *left))

    def partitions(self) -> Iterator[Rows]:
        """Rows in the order of what they hold; ``split`` is the number of each one's split."""
        assert self._buckets is not None  # finish() came before
        return self._buckets.joined(_PART_BYTES)

    def encoded(self, rows: Rows, facts: ImageFacts) -> Columns:
        """Rows as the model's columns, ``image`` and ``target``; -1 is a class that train does not have."""
        known = {label: number for number, label in enumerate(facts.classes)}
        numbers = np.array([known.get(label, -1) for label in self._labels], np.int64)
        return {"image": np.ascontiguousarray(rows["image"][:, : facts.shape[0]]), TARGET: numbers[rows["label"]]}

    def _flush(self) -> None:
        if not self._held or self._buckets is None:
            return
        rows = np.zeros(len(self._held), self._buckets.dtype)
        rows["image"] = [pixels for pixels, _, _ in self._held]
        rows["label"] = [self._labels[label] for _, label, _ in self._held]
        rows["row"] = [row for _, _, row in self._held]
        rows["hash"], rows["draw"] = hash_rows(rows["image"].reshape(len(rows), -1), self._seed)
        rows["answer"] = [hash_text(label) for _, label, _ in self._held]
        for split, places in drawn_splits(rows["draw"], self._shares).items():
            rows["split"][places] = SPLITS.index(split)
            self._classes[split].update(self._held[place][1] for place in places.tolist())
        self._buckets.add(rows)
        self._held = []

    def _left_out(self) -> str:
        return f"left out were: {counts_text(dict(sorted(self.left.items())))}"
