"""Samples that occur more than once: in one split, in several, or with different targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tasks.readers.content import row_hashes
from tasks.running.splits import TARGET, Columns


class Repeats(NamedTuple):
    """For every row of a split, where its like is, in words; None where it is unique."""

    duplicate_of: list[str | None]
    """An earlier row of the same split with equal inputs."""
    also_in: list[str | None]
    """A row of another split with equal inputs."""
    conflicts_with: list[str | None]
    """A row, anywhere, with equal inputs and another target."""


def find_repeats(splits: dict[str, Columns], first: Mapping[str, int] | None = None) -> dict[str, Repeats]:
    """Compare all rows of all splits by the content of their inputs.

    Args:
        first: the number that each split's first row has in words, by default 0.
    """
    first_of = first or {}
    hashes = {name: row_hashes(columns).tolist() for name, columns in splits.items()}
    targets = {name: _targets(columns) for name, columns in splits.items()}
    seen: dict[str, list[tuple[str, int]]] = {}
    for name, values in hashes.items():
        for row, value in enumerate(values):
            seen.setdefault(value, []).append((name, row))

    def told(name: str, row: int) -> str:
        return f"row {row + first_of.get(name, 0)}"

    found = {name: Repeats(*_blank(len(values))) for name, values in hashes.items()}
    for places in seen.values():
        if len(places) == 1:
            continue
        earliest: dict[str, int] = {}
        for name, row in places:
            found_here = found[name]
            if name in earliest:
                found_here.duplicate_of[row] = told(name, earliest[name])
            earliest.setdefault(name, row)
            other = next((place for place in places if place[0] != name), None)
            if other is not None:
                found_here.also_in[row] = f"{other[0]} {told(*other)}"
            odd = next((place for place in places if targets[place[0]][place[1]] != targets[name][row]), None)
            if odd is not None:
                found_here.conflicts_with[row] = f"{odd[0]} {told(*odd)}"
    return found


def _blank(rows: int) -> tuple[list[str | None], list[str | None], list[str | None]]:
    return [None] * rows, [None] * rows, [None] * rows


def _targets(columns: Columns) -> list[bytes]:
    target = np.ascontiguousarray(columns[TARGET])
    return [value.tobytes() for value in target.reshape(len(target), -1)]
