"""The latency table: every width that may be chosen is timed, since kernels climb in steps that nobody could guess."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from tasks.allocate.costs import LayerTiming, Table, axes
from tasks.allocate.layer_graph import empty_graph, entrance_graph, layer_graph
from tasks.allocate.layer_timing import time_in_turn
from tasks.allocate.structure import Structure, Work

_FINEST, _COARSEST = 16, 3
"""Widths per group, at most and at least."""
_SIMILAR = 0.45
"""What a grid's point costs on average, as a share of its widest point."""
_AT_ONCE = 32
"""Sessions alive at a time: their weights add up."""

Axes = tuple[Work, tuple[int, ...], tuple[int, ...]]


def measure_table(
    structure: Structure,
    *,
    int8: bool,
    batch: int,
    threads: int,
    seconds: float,
    progress: Callable[[float, str], None],
) -> Table:
    """Time each layer of the structure at each pair of widths that the groups can give it.

    A layer's time is that of a graph with it alone, less that of a graph with nothing. Equal layers are timed once.

    Args:
        int8: quantized layers, else fp32.
        batch: samples per run.
        threads: of each run.
        seconds: about so long in all: the widest layers are timed first, and tell how many widths can be afforded.
    """
    deadline = time.monotonic() + seconds
    widest, began = {}, time.monotonic()
    for work, inputs, outputs in _distinct(structure, _COARSEST):
        started = time.monotonic()
        time_in_turn(
            [layer_graph(work, _in(work, inputs[-1], outputs[-1]), outputs[-1], int8=int8)],
            batch=batch,
            threads=threads,
            seconds=0.0,
        )
        widest[work, inputs[-1], outputs[-1]] = time.monotonic() - started
    budget = 0.8 * (seconds - (time.monotonic() - began))

    def expected(grid: Axes) -> float:
        work, inputs, outputs = grid
        return _SIMILAR * len(inputs) * len(outputs) * widest[work, inputs[-1], outputs[-1]]

    count = next(
        (c for c in range(_FINEST, _COARSEST, -1) if sum(map(expected, _distinct(structure, c))) <= budget), _COARSEST
    )
    grids = list(_distinct(structure, count))
    left = sum(map(expected, grids))
    timings = []
    for number, grid in enumerate(grids):
        work, inputs, outputs = grid
        progress(number / len(grids), f"timing {work.operator} {outputs[-1]} on {'x'.join(map(str, work.size))}")
        share = expected(grid) / left
        until = time.monotonic() + max(0.0, deadline - time.monotonic()) * share
        left -= expected(grid)
        points = [(i, o) for i in inputs for o in outputs]
        found: list[float] = []
        for part in _chunks(points):
            graphs = [layer_graph(work, _in(work, i, o), o, int8=int8) for i, o in part]
            allowed = (until - time.monotonic()) * len(part) / (len(points) - len(found))
            empty, *taken = time_in_turn([empty_graph(), *graphs], batch=batch, threads=threads, seconds=allowed)
            found += [max(0.0, ms - empty) for ms in taken]
        rows = tuple(tuple(found[i * len(outputs) : (i + 1) * len(outputs)]) for i in range(len(inputs)))
        timings.append(LayerTiming(work=work, inputs=inputs, outputs=outputs, ms=rows))
    (entrance,) = time_in_turn(
        [entrance_graph(structure.input_values, int8=int8)], batch=batch, threads=threads, seconds=0.5
    )
    return Table(
        choices={group.name: group.choices(count) for group in structure.groups},
        timings=tuple(timings),
        entrance_ms=entrance,
        kind="int8" if int8 else "fp32",
        batch=batch,
        threads=threads,
    )


def _distinct(structure: Structure, count: int) -> Iterator[Axes]:
    """What has to be timed if every group has about this number of widths."""
    choices = {group.name: group.choices(count) for group in structure.groups}
    yield from dict.fromkeys((layer.work, *axes(structure, layer, choices)) for layer in structure.layers)


def _in(work: Work, inputs: int, outputs: int) -> int:
    return outputs if work.depthwise else inputs


def _chunks(points: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    for start in range(0, len(points), _AT_ONCE):
        yield points[start : start + _AT_ONCE]
