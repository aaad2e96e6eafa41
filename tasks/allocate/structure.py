"""What a network is to the allocator: layers with the work they do, and groups of channels that set their widths."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Literal

from pydantic import Field

from model_registry.variant import Frozen

GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
"""Of a recurrent layer: matrices for each unit."""

Keep = Mapping[str, int]
"""Channels left by group."""


class WidthGroup(Frozen):
    """Channels that are removed together. A multiple of ``unit`` is left of them, at least ``lowest``, or all."""

    name: str
    layers: tuple[str, ...]
    width: int
    unit: int = 1
    lowest: int = 1

    def choices(self, most: int) -> tuple[int, ...]:
        """About this many widths, widest first: multiples of the unit times a power of two, which kernels like best."""
        step = self.unit
        while step * most < self.width:
            step *= 2
        between = range(self.lowest + (-self.lowest) % step, self.width, step)
        return tuple(sorted({self.lowest, *between, self.width}, reverse=True))

    def nearest(self, share: float) -> int:
        """The allowed width nearest to this share of the whole."""
        units = round(self.width * share / self.unit) * self.unit
        return min(max(units, self.lowest), self.width)


class Work(Frozen):
    """What a layer does, but for its widths; equal works of equal widths take equally long.

    ``size``: height and width of a convolution's input, rows per sample of a MatMul, steps of a recurrent layer.
    ``depthwise``: as many inputs as outputs, each on its own. ``layers``, ``directions``: of a recurrent module, whose
    outputs are the units of all directions. ``last``: its outputs are the model's, in floating point.
    """

    operator: Literal["Conv", "ConvTranspose", "Gemm", "MatMul", "GRU", "LSTM", "RNN"]
    size: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    depthwise: bool = False
    layers: int = 1
    directions: int = 1
    last: bool = False


class TimedLayer(Frozen):
    """A convolution or matrix product of the network, called ``calls`` times a sample.

    ``input_groups``, ``output_groups``: how many of its inputs and outputs belong to the channels of each group; the
    rest never changes.
    """

    name: str
    work: Work
    inputs: int
    outputs: int
    input_groups: dict[str, int] = Field(default_factory=dict)
    output_groups: dict[str, int] = Field(default_factory=dict)
    calls: int = 1


class Structure(Frozen):
    """A network: its groups and layers, and the values of one sample that enter it."""

    groups: tuple[WidthGroup, ...]
    layers: tuple[TimedLayer, ...]
    input_values: int

    def widths(self, layer: TimedLayer, keep: Keep) -> tuple[int, int]:
        """Inputs and outputs of the layer with these numbers of channels in each group; groups not named are whole."""
        outputs = self._left(layer.outputs, layer.output_groups, keep)
        return (outputs if layer.work.depthwise else self._left(layer.inputs, layer.input_groups, keep)), outputs

    def full(self) -> dict[str, int]:
        """Nothing removed."""
        return {group.name: group.width for group in self.groups}

    def group(self, name: str) -> WidthGroup:
        """The group of that name."""
        return next(group for group in self.groups if group.name == name)

    def _left(self, whole: int, groups: dict[str, int], keep: Keep) -> int:
        gone = 0
        for name, count in groups.items():
            width = self.group(name).width
            gone += count * (width - keep.get(name, width)) // width
        return whole - gone


def weight_count(work: Work, inputs: int, outputs: int) -> int:
    """Weights of the layer, without its biases."""
    if work.operator in GATES:
        units = outputs // work.directions
        read = inputs + (work.layers - 1) * outputs + work.layers * units
        return GATES[work.operator] * units * work.directions * read
    groups = outputs if work.depthwise else work.groups
    return inputs * outputs // groups * prod(work.kernel)
