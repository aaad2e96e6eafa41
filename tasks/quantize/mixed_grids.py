"""8 and 4 bits mixed in one decoder, to a size that is asked for: 4 where they do the least damage, by measuring it.

Like products of a few neighbouring layers are put in 4 bits while all else has 8, and what that costs is how far the
distributions over the whole vocabulary are from the fp32 file's. Other blocks of 4 bits cost as much more or less as
the layers' own answers move more or less: near its least a divergence grows with the square of what moves it. Damages
are added up: those of SmolLM2's four kinds of products give 0.126 nats, and together they cost 0.111.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto

from tasks.quantize.decoder_weights import Grid, Rounded, decoder_products, quantize_decoder, table_of, usual_grid
from tasks.quantize.divergence import Divergence
from tasks.quantize.least_damage import least_damage

_RUNS = 10
"""Runs of neighbouring layers, at most: of each, every kind of product is measured by itself."""
_MEASURED = 32
"""Block of 4 bits that is measured."""
_BLOCKS = (16, _MEASURED, 64)
"""Of 4 bits: 6, 5 and 4.5 bits a weight with their scales. 8 have 8.5."""
_LAYER = re.compile(r"layers_(\d+)_(\w+)_weight")
_SLACK = 32
"""Bytes for each weight by which the file's own numbers (lengths of its parts) may be longer."""


@dataclass(frozen=True)
class Mixture:
    """The grid of each weight, and by group of weights ``bits``, ``block`` (the longest), ``bytes`` and ``damage``."""

    grids: Mapping[str, Grid]
    groups: Mapping[str, Mapping[str, Any]]


class MixedGrids:
    """What a decoder's weights can be rounded to.

    Args:
        model: fp32, as :mod:`tasks.export.decoder_onnx` writes it.
        others: bytes that the finished file has besides the ones that :func:`quantize_decoder` writes.
    """

    def __init__(self, model: ModelProto, others: int = 0) -> None:
        self._model, table, products = model, table_of(model), decoder_products(model)
        shapes = {i.name: tuple(i.dims) for i in model.graph.initializer if i.name in {*products, table}}
        self._lengths = {name: shape[1] if name == table else shape[0] for name, shape in shapes.items()}
        self._weights = {name: int(np.prod(shape)) for name, shape in shapes.items()}
        self._eight = {n: grid for n, length in self._lengths.items() if (grid := usual_grid(length, 8)) is not None}
        self._grades = {group: list(self._grades_of(names)) for group, names in _groups(self._eight, table).items()}
        found: int = quantize_decoder(model, self._eight).ByteSize()
        self._fixed = found - self._size(self._eight) + others + _SLACK * len(self._eight)

    @property
    def smallest(self) -> int:
        """Bytes of the file that has 4 bits in the longest blocks everywhere."""
        return self._fixed + sum(min(map(self._size, grades)) for grades in self._grades.values())

    @property
    def largest(self) -> int:
        """Bytes of the file that has 8 bits everywhere."""
        return self._fixed + self._size(self._eight)

    def mix(
        self,
        rounded: Rounded,
        moved: Callable[[str, Grid], float],
        divergence: Divergence,
        limit: int,
        progress: Callable[[float, str], None],
    ) -> Mixture:
        """The grids that diverge least in a file of at most that number of bytes.

        Args:
            rounded: rounds the weights, each on each grid several times.
            moved: by how much a weight's answers move on a grid, as a sum of squares.
            limit: at least :attr:`smallest`.
            progress: takes a fraction of the whole and a line of text.
        """
        damages = {group: [0.0] for group in self._grades}  # in 8 bits
        if limit < self.largest:
            damages = self._damages(rounded, moved, divergence, progress)
        choices = [
            [(self._size(grade), damage) for grade, damage in zip(grades, damages[group], strict=False)]
            for group, grades in self._grades.items()
        ]
        taken = least_damage(choices, limit - self._fixed)
        assert taken is not None, "the limit was compared with the smallest size before"
        grids, groups = dict[str, Grid](), dict[str, dict[str, Any]]()
        for (group, grades), number in zip(self._grades.items(), taken, strict=True):
            grids |= grades[number]
            bits, block = _widest(grades[number])
            size = self._size(grades[number])
            groups[group] = {"bits": bits, "block": block, "bytes": size, "damage": damages[group][number]}
        return Mixture(grids, groups)

    def _damages(
        self,
        rounded: Rounded,
        moved: Callable[[str, Grid], float],
        divergence: Divergence,
        progress: Callable[[float, str], None],
    ) -> dict[str, list[float]]:
        """What each group costs on each of its grids, in nats a token; nothing in 8 bits."""

        def apart(grids: dict[str, Grid]) -> float:
            file: bytes = quantize_decoder(self._model, self._eight | grids, rounded).SerializeToString()
            return divergence.of(file)

        least, found = apart({}), dict[str, list[float]]()
        for number, (group, (_, *low)) in enumerate(self._grades.items()):
            progress(number / len(self._grades), group)
            moves = [sum(moved(name, grid) for name, grid in grade.items()) for grade in low]
            measured = next(
                n for n, grade in enumerate(low) if _widest(grade).block == min(_MEASURED, _widest(low[-1]).block)
            )
            damage = max(0.0, apart(low[measured]) - least)
            found[group] = [0.0, *(damage * move / (moves[measured] or 1.0) for move in moves)]
        return found

    def _size(self, grids: Mapping[str, Grid]) -> int:
        return sum(grid.size(self._weights[name]) for name, grid in grids.items())

    def _grades_of(self, names: tuple[str, ...]) -> Iterator[dict[str, Grid]]:
        """All in 8 bits, and in 4 in ever larger blocks as far as the rows can be divided into such."""
        yield {name: self._eight[name] for name in names}
        before = None
        for longest in _BLOCKS:
            grade = {name: Grid(4, min(longest, _divisor(self._lengths[name]))) for name in names}
            if grade != before:
                yield grade
            before = grade


def _widest(grade: Mapping[str, Grid]) -> Grid:
    """That of the longest blocks: rows that cannot be divided into such have shorter ones."""
    return max(grade.values())


def _divisor(length: int) -> int:
    """The largest power of two that divides a row."""
    return length & -length


def _groups(names: Iterable[str], table: str | None) -> dict[str, tuple[str, ...]]:
    """Weights of neighbouring layers that are rounded alike, by what they are called."""
    layers = {name: found for name in names if (found := _LAYER.fullmatch(name))}
    count = 1 + max((int(found[1]) for found in layers.values()), default=0)
    runs = np.array_split(np.arange(count), min(_RUNS, count))
    groups = dict[str, list[str]]()
    for name in names:
        if name in layers:
            number, kind = int(layers[name][1]), layers[name][2]
            run = next(run for run in runs if number in run)
            span = f"layer {run[0]}" if len(run) == 1 else f"layers {run[0]} to {run[-1]}"
            groups.setdefault(f"{kind} of {span}", []).append(name)
        else:
            groups["table of tokens" if name == table else name] = [name]
    return {group: tuple(found) for group, found in groups.items()}
