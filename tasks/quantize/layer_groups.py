"""Layers and what belongs to them: the units that accuracy control takes out of int8 together."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ModelProto

from tasks.onnx_models.onnx_cost import Shapes, layer_macs
from tasks.quantize.prepared_graph import layer_label, quantizable


@dataclass(frozen=True)
class LayerGroup:
    """A layer and the operators after it, up to the next layer. ``macs``: of one sample, None if not known."""

    name: str
    nodes: frozenset[str]
    macs: int | None
    before: tuple[int, ...]
    """Places, in the list of groups, of those whose outputs it reads."""


def layer_groups(prepared: ModelProto, shapes: Shapes) -> list[LayerGroup]:
    """Every node of the graph in exactly one group, in the order of the graph.

    A node that joins two branches goes with the later one; nodes before the first layer go with the first.
    """
    layers = quantizable(prepared)
    place = {node.name: number for number, node in enumerate(layers)}
    macs = layer_macs(prepared, shapes)
    owner: dict[str, int] = {}  # by tensor
    nodes: list[set[str]] = [set() for _ in layers]
    before: list[set[int]] = [set() for _ in layers]
    for node in prepared.graph.node:
        sources = {owner[name] for name in node.input if name in owner}
        mine = place.get(node.name, max(sources, default=-1))
        if node.name in place:
            before[mine] |= sources
        for name in node.output:
            if mine >= 0:
                owner[name] = mine
        if layers:
            nodes[max(mine, 0)].add(node.name)
    return [
        LayerGroup(layer_label(prepared, node), frozenset(nodes[i]), macs[node.output[0]], tuple(sorted(before[i])))
        for i, node in enumerate(layers)
    ]
