"""The samples whose answers the compression changed, as a person can look at them: pictures, else their values."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_registry.store import Store
from tasks.evidence.decision import Decision
from tasks.evidence.flipped import Flipped, fetch_flips
from tasks.evidence.scoring import has_places, is_classifier, top_classes
from tasks.report.place_pictures import four_pictures, right_texts

_COLUMNS = 6
_LARGEST = 96
"""Pixels of a picture's longer side; larger ones are shrunk, smaller ones are enlarged by the page."""
_CHANNELS = (1, 3, 4)
_VALUES = 8
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Flip:
    """One sample: its row in the split, the truth, and what both variants answer. ``values``: of what is no picture."""

    row: int
    truth: str
    baseline: str
    chosen: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sheet:
    """A PNG of all pictures, ``columns`` in a row, each ``width`` x ``height`` pixels."""

    png: bytes
    columns: int
    width: int
    height: int

    @property
    def uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class FlipGroup:
    """``total`` samples of one kind; ``flips`` are those shown, in the order of the pictures."""

    total: int
    flips: tuple[Flip, ...]
    sheet: Sheet | None = None


@dataclass(frozen=True)
class Flips:
    """Samples on which the chosen variant is worse and better than the baseline. ``names``: of the values shown.
    ``places``: each picture stands with its true classes by pixel, and both answers below."""

    worse: FlipGroup
    better: FlipGroup
    names: tuple[str, ...] = ()
    places: bool = False


def flips_of(store: Store, decision: Decision | None, labels: Sequence[str] | None) -> Flips | None:
    """The samples that a decision points at; None where it points at none. Raises like :meth:`Store.fetch`."""
    paired = next((s.to_baseline for s in decision.scored if s.role == "chosen"), None) if decision else None
    if decision is None or decision.flips is None or paired is None:
        return None
    return show_flips(fetch_flips(store, decision.flips), labels, better=paired.better, worse=paired.worse)


def show_flips(flipped: Flipped, labels: Sequence[str] | None, *, better: int, worse: int) -> Flips:
    """Make samples visible; an input that is one [C, H, W], [H, W, C] or [H, W] per sample counts as a picture.

    Args:
        labels: names of the classes by index, for classifiers.
        better, worse: how many such samples there are in all.
    """
    pictures, places = _pictures(flipped.inputs), has_places(flipped.baseline, flipped.targets)
    places = places and pictures is not None and pictures.shape[1:3] == flipped.targets.shape[1:]
    if pictures is not None and places:
        pictures = four_pictures(pictures, flipped.targets, (flipped.baseline, flipped.chosen))
    names = () if pictures is not None else _names(flipped.inputs)
    answers = [_answers(values, flipped.targets, labels) for values in (flipped.baseline, flipped.chosen)]
    truths = _truths(flipped, labels)

    def group(which: NDArray[np.bool_], total: int) -> FlipGroup:
        rows = np.flatnonzero(which).tolist()
        flips = tuple(
            Flip(
                row=int(flipped.rows[i]),
                truth=truths[i],
                baseline=answers[0][i],
                chosen=answers[1][i],
                values=_values(flipped.inputs, i) if names else (),
            )
            for i in rows
        )
        return FlipGroup(total, flips, contact_sheet(pictures[rows]) if pictures is not None and rows else None)

    return Flips(worse=group(~flipped.better, worse), better=group(flipped.better, better), names=names, places=places)


def contact_sheet(pictures: Pixels, *, columns: int = _COLUMNS) -> Sheet:
    """All pictures in one PNG, row by row; equal pictures give an equal file.

    Args:
        pictures: [K, H, W, C] with one, three or four channels, K at least 1.
    """
    from PIL import Image

    count, height, width, _ = pictures.shape
    scale = min(1.0, _LARGEST / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    columns = min(columns, count)
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[pictures.shape[3]]
    sheet = Image.new(mode, (columns * size[0], math.ceil(count / columns) * size[1]))
    for number, pixels in enumerate(pictures):
        image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if mode == "L" else pixels), mode=None)
        if scale < 1:
            image = image.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(image, (number % columns * size[0], number // columns * size[1]))
    buffer = io.BytesIO()
    sheet.save(buffer, format="png", optimize=True)
    return Sheet(buffer.getvalue(), columns, *size)


def _pictures(inputs: dict[str, NDArray[Any]]) -> Pixels | None:
    """The first input that looks like pictures, as [K, H, W, C] bytes."""
    for array in inputs.values():
        if not np.issubdtype(array.dtype, np.number) or len(array) == 0:
            continue
        if array.ndim == 3 and min(array.shape[1:]) >= 4:
            return _bytes(array[..., None])
        if array.ndim == 4 and array.shape[1] in _CHANNELS and min(array.shape[2:]) >= 4:
            return _bytes(np.moveaxis(array, 1, 3))
        if array.ndim == 4 and array.shape[3] in _CHANNELS and min(array.shape[1:3]) >= 4:
            return _bytes(array)
    return None


def _bytes(values: NDArray[Any]) -> Pixels:
    """Bytes as they are; else the range of all pictures together becomes 0 to 255, of normalised ones by channel."""
    if values.dtype == np.uint8:
        return values
    numbers = np.nan_to_num(values.astype(np.float64))
    low, high = np.zeros(1), numbers.max(keepdims=True)
    if numbers.min() < 0:  # a mean was subtracted from each channel
        low, high = (f(axis=(0, 1, 2), keepdims=True) for f in (numbers.min, numbers.max))
    elif high.item() <= 1.0:
        high = np.ones(1)
    elif 128 < high.item() <= 255:
        high = np.full(1, 255.0)
    span = np.where(high > low, high - low, 1.0)
    pixels: Pixels = (255 * np.clip((numbers - low) / span, 0, 1)).round().astype(np.uint8)
    return pixels


def _answers(outputs: NDArray[Any], targets: NDArray[Any], labels: Sequence[str] | None) -> list[str]:
    outputs = _pairs(outputs, labels)
    if has_places(outputs, targets):
        return right_texts(outputs, targets)
    if not is_classifier(outputs, targets):
        return [_numbers(row) for row in outputs]
    shifted = outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True)
    shares = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    return [
        f"{_label(answer, labels)} ({100 * row.max():.0f} %)" if answer >= 0 else "not a number"
        for answer, row in zip(top_classes(outputs).tolist(), shares, strict=True)
    ]


def _truths(flipped: Flipped, labels: Sequence[str] | None) -> list[str]:
    if has_places(flipped.baseline, flipped.targets):
        known = [target[target >= 0] for target in flipped.targets]  # below 0 nothing is known
        counted = [zip(*np.unique(target, return_counts=True), strict=True) for target in known]
        ordered = [sorted(counts, key=lambda item: -item[1])[:_VALUES] for counts in counted]
        return [", ".join(_label(int(label), labels) for label, _ in counts) for counts in ordered]
    if is_classifier(_pairs(flipped.baseline, labels), flipped.targets):
        return [_label(int(target), labels) for target in flipped.targets]
    return [_numbers(target) for target in flipped.targets]


def _pairs(outputs: NDArray[Any], labels: Sequence[str] | None) -> NDArray[Any]:
    """One logit a row as those of two classes, where the classes have names."""
    if len(labels or ()) != 2 or outputs.size != len(outputs):
        return outputs
    logits = outputs.reshape(-1, 1)
    return np.concatenate([np.zeros_like(logits), logits], axis=1)


def _label(index: int, labels: Sequence[str] | None) -> str:
    return labels[index] if labels and 0 <= index < len(labels) else str(index)


def _numbers(values: Any) -> str:
    """Up to four numbers of whatever shape."""
    flat = np.ravel(np.asarray(values))
    text = ", ".join(_value(v) for v in flat[:4])
    return f"{text}, … ({flat.size} values)" if flat.size > 4 else text


def _names(inputs: dict[str, NDArray[Any]]) -> tuple[str, ...]:
    """Headings of the values shown: an input's name, numbered where it has several values."""
    names = [
        name if array[0].size == 1 else f"{name} {place}"
        for name, array in inputs.items()
        if len(array)
        for place in range(min(array[0].size, _VALUES))
    ]
    more = sum(array[0].size for array in inputs.values() if len(array)) > len(names[:_VALUES])
    return (*names[:_VALUES], *(["…"] if more else []))


def _values(inputs: dict[str, NDArray[Any]], row: int) -> tuple[str, ...]:
    flat = [v for array in inputs.values() for v in np.ravel(array[row])[:_VALUES]][:_VALUES]
    more = sum(array[row].size for array in inputs.values()) > len(flat)
    return (*map(_value, flat), *(["…"] if more else []))


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, np.floating) else str(value)
