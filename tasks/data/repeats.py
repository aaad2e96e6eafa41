"""Samples that occur more than once: in one split, in several, or with different targets."""

from __future__ import annotations

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


def find_repeats(splits: dict[str, Columns]) -> dict[str, Repeats]:
    """Compare all rows of all splits by the content of their inputs."""
    hashes = {name: row_hashes(columns).tolist() for name, columns in splits.items()}
    targets = {name: _targets(columns) for name, columns in splits.items()}
    seen: dict[str, list[tuple[str, int]]] = {}
    for name, values in hashes.items():
        for row, value in enumerate(values):
            seen.setdefault(value, []).append((name, row))
    found = {name: Repeats(*_blank(len(values))) for name, values in hashes.items()}
    for places in seen.values():
        if len(places) == 1:
            continue
        first: dict[str, int] = {}
        for name, row in places:
            found_here = found[name]
            if name in first:
                found_here.duplicate_of[row] = f"row {first[name]}"
            first.setdefault(name, row)
            other = next((place for place in places if place[0] != name), None)
            if other is not None:
                found_here.also_in[row] = f"{other[0]} row {other[1]}"
            odd = next((place for place in places if targets[place[0]][place[1]] != targets[name][row]), None)
            if odd is not None:
                found_here.conflicts_with[row] = f"{odd[0]} row {odd[1]}"
    return found


def _blank(rows: int) -> tuple[list[str | None], list[str | None], list[str | None]]:
    return [None] * rows, [None] * rows, [None] * rows


def _targets(columns: Columns) -> list[bytes]:
    target = np.ascontiguousarray(columns[TARGET])
    return [value.tobytes() for value in target.reshape(len(target), -1)]
