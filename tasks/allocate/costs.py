"""What a width costs: milliseconds from measured layers, bytes from the weights."""

from __future__ import annotations

from bisect import bisect_right

from model_registry.variant import Frozen
from tasks.allocate.structure import Keep, Structure, TimedLayer, Work, weight_count

_NODE_BYTES = {"fp32": 80, "int8": 360}
"""Of a layer in a stripped file, beside its weights: names, scales of activations, nodes. Measured on small CNNs."""


class LayerTiming(Frozen):
    """Milliseconds of one kind of work on a grid of widths: ``ms[i][j]`` with ``inputs[i]`` and ``outputs[j]``.

    Of depthwise work the inputs are one entry, which means nothing.
    """

    work: Work
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]


class Table(Frozen):
    """Measured latencies of a structure's layers, at the widths that may be chosen.

    ``choices``: channels that may be left, by group, widest first. ``entrance_ms``: what each run costs beside its
    layers.
    """

    choices: dict[str, tuple[int, ...]]
    timings: tuple[LayerTiming, ...]
    entrance_ms: float
    kind: str
    batch: int
    threads: int


class Costs:
    """Latency and size of a structure at any choice of widths.

    Raises:
        KeyError: the table is of another structure.
    """

    def __init__(self, structure: Structure, table: Table) -> None:
        self._structure, self._table = structure, table
        timings = {(t.work, t.inputs, t.outputs): t for t in table.timings}
        self._of = [timings[layer.work, *axes(structure, layer, table.choices)] for layer in structure.layers]
        self.groups_of = [
            tuple(sorted(layer.input_groups.keys() | layer.output_groups.keys())) for layer in structure.layers
        ]
        """Of each layer, by its number: the groups that its cost depends on."""
        self._ms: dict[tuple[int, ...], float] = {}
        self._bytes: dict[tuple[int, ...], float] = {}

    def layer_ms(self, number: int, keep: Keep) -> float:
        """Of the layer of this number, all its calls."""
        key = (number, *[keep[name] for name in self.groups_of[number]])
        if key not in self._ms:
            layer = self._structure.layers[number]
            self._ms[key] = layer.calls * _look_up(self._of[number], *self._structure.widths(layer, keep))
        return self._ms[key]

    def ms(self, keep: Keep) -> float:
        """Of one run, with the batch of the table; ``keep`` names all groups."""
        return self._table.entrance_ms + sum(self.layer_ms(n, keep) for n in range(len(self._of)))

    def layer_bytes(self, number: int, keep: Keep) -> float:
        """In the file: weights, a bias per output (and in int8 its scale), and what every node takes."""
        key = (number, *[keep[name] for name in self.groups_of[number]])
        if key not in self._bytes:
            layer = self._structure.layers[number]
            inputs, outputs = self._structure.widths(layer, keep)
            weights = weight_count(layer.work, inputs, outputs)
            fp32 = self._table.kind == "fp32"
            self._bytes[key] = (4 * (weights + outputs) if fp32 else weights + 12 * outputs) + _NODE_BYTES[
                self._table.kind
            ]
        return self._bytes[key]

    def bytes(self, keep: Keep) -> int:
        """Of the file."""
        return round(sum(self.layer_bytes(n, keep) for n in range(len(self._of))))


def axes(
    structure: Structure, layer: TimedLayer, choices: dict[str, tuple[int, ...]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The inputs and outputs at which a layer is measured, ascending: all that a single group can make of it.

    Where several groups meet (a concatenation) they are narrowed together, and what lies between is interpolated.
    """

    def along(groups: dict[str, int], side: int) -> tuple[int, ...]:
        most = max((len(choices[name]) for name in groups), default=1)
        found = set()
        for step in range(most):
            keep = {name: choices[name][min(step, len(choices[name]) - 1)] for name in groups}
            found.add(structure.widths(layer, keep)[side])
        return tuple(sorted(found))

    return (0,) if layer.work.depthwise else along(layer.input_groups, 0), along(layer.output_groups, 1)


def _look_up(timing: LayerTiming, inputs: int, outputs: int) -> float:
    """Bilinear between measured widths, exact at them; the staircases of the kernels are kept."""
    rows = _between(timing.inputs, inputs)
    columns = _between(timing.outputs, outputs)
    return sum(a * b * timing.ms[i][j] for i, a in rows for j, b in columns)


def _between(axis: tuple[int, ...], value: int) -> list[tuple[int, float]]:
    """Places on the axis and their weights; beyond its ends, the end."""
    if len(axis) == 1 or value <= axis[0]:
        return [(0, 1.0)]
    if value >= axis[-1]:
        return [(len(axis) - 1, 1.0)]
    right = bisect_right(axis, value)
    share = (value - axis[right - 1]) / (axis[right] - axis[right - 1])
    return [(right - 1, 1.0 - share), (right, share)] if share else [(right - 1, 1.0)]
