"""Cross-layer equalization: the channels between two layers get weights of equal range, the function stays the same.

Markus Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019, section 4.1
(arXiv:1906.04721). Where nothing but operators that commute with a positive factor lies between two layers, channel i
may leave the first divided by s_i and enter the second multiplied by it. Depthwise convolutions, whose channels differ
most, profit most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

Array = NDArray[Any]

_COMMUTE = {"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Dropout", "Identity"}
_LARGEST = 1e4
"""No channel is scaled by more, or by less than its inverse: beyond that fp32 itself would round."""


@dataclass(frozen=True)
class Pair:
    """Two layers by node name, and how many inputs of the second one channel of the first becomes (flattened maps)."""

    first: str
    second: str
    repeat: int


@dataclass(frozen=True)
class Equalized:
    """The new model, the pairs of layers whose channels were scaled, and ``first -> second: reason`` for those not."""

    model: ModelProto
    pairs: tuple[Pair, ...]
    skipped: tuple[str, ...]


def equalize(model: ModelProto, *, sweeps: int = 20) -> Equalized:
    """Equalize all chains Conv or Gemm -> [Relu, pooling, Flatten] -> Conv or Gemm, depthwise ones included.

    A pair is left alone if its tensor has a second reader, a weight is shared, or a Clip with an upper bound lies
    between: the bound would have to differ by channel, which Clip cannot express.

    Args:
        model: prepared (BatchNorm folded, constants as initializers); not changed.
        sweeps: over all pairs, at most; ends earlier where no factor differs from 1 by more than a thousandth.
    """
    result = ModelProto()
    result.CopyFrom(model)
    pairs, skipped = find_pairs(result)
    nodes = {node.name: node for node in result.graph.node}
    tensors = {i.name: i for i in result.graph.initializer}
    arrays = {name: numpy_helper.to_array(tensors[name]).astype(np.float64) for p in pairs for name in _names(nodes, p)}
    for _ in range(sweeps):
        if max((_balance(nodes, arrays, pair) for pair in pairs), default=0.0) < 1e-3:
            break
    for name, array in arrays.items():
        tensors[name].CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))
    return Equalized(result, tuple(pairs), tuple(skipped))


def find_pairs(model: ModelProto) -> tuple[list[Pair], list[str]]:
    """The pairs of layers that may be scaled against each other, in the order of the graph; and those refused."""
    graph = model.graph
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {v.name for v in graph.output}
    shapes = {i.name: tuple(i.dims) for i in graph.initializer}
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer if len(i.dims) <= 1}
    pairs, skipped = [], []
    for first in graph.node:
        channels = _channels(first, shapes)
        if channels is None:
            continue
        tensor, flat, reason = first.output[0], False, ""
        second = None
        while not reason:
            after = readers.get(tensor, [])
            if tensor in outputs or len(after) != 1:
                reason = "more than one reader"
                break
            node = after[0]
            if node.op_type in ("Conv", "Gemm") and node.domain == "" and node.input[0] == tensor:
                second = node
                break
            if node.op_type == "Clip" and not _is_relu(node, constants):
                reason = "a Clip with a bound lies between"
            elif _flattens(node, constants):
                flat = True
            elif node.op_type not in _COMMUTE and node.op_type != "Clip":
                reason = f"{node.op_type} lies between"
            tensor = node.output[0]
        if second is None:
            if reason != "more than one reader":
                skipped.append(f"{first.name}: {reason}")
            continue
        entering = _inputs(second, shapes)
        alone = all(len(readers[name]) == 1 for name in [*first.input[1:], *second.input[1:2]] if name)
        if entering is None or entering % channels or (entering != channels and not flat):
            skipped.append(f"{first.name} -> {second.name}: channels do not match")
        elif not alone:
            skipped.append(f"{first.name} -> {second.name}: a weight is shared")
        else:
            pairs.append(Pair(first.name, second.name, entering // channels))
    return pairs, skipped


def _channels(node: NodeProto, shapes: dict[str, tuple[int, ...]]) -> int | None:
    """Output channels of a layer whose weight and bias are constants; None for anything else."""
    if node.op_type not in ("Conv", "Gemm") or node.domain != "" or node.input[1] not in shapes:
        return None
    transposed = node.op_type == "Gemm" and not _attribute(node, "transB", 0)
    channels = shapes[node.input[1]][1 if transposed else 0]
    if len(node.input) > 2 and node.input[2]:
        bias = shapes.get(node.input[2])
        if not bias or bias[-1] != channels or np.prod(bias) != channels:
            return None
    return channels


def _inputs(node: NodeProto, shapes: dict[str, tuple[int, ...]]) -> int | None:
    """Input channels of a layer with a constant weight."""
    shape = shapes.get(node.input[1])
    if shape is None or _attribute(node, "transA", 0):
        return None
    if node.op_type == "Gemm":
        return shape[1 if _attribute(node, "transB", 0) else 0]
    return shape[1] * int(_attribute(node, "group", 1))


def _balance(nodes: dict[str, NodeProto], arrays: dict[str, Array], pair: Pair) -> float:
    """Scale one pair in place; returns the largest |log s|. Equation 11: s_i = sqrt(r1_i r2_i) / r2_i."""
    first, second = nodes[pair.first], nodes[pair.second]
    leaving = _by_output(first, arrays[first.input[1]])  # a view, [channels, ...]
    entering, group = _by_input(second, arrays[second.input[1]])
    ranges = np.abs(leaving).max(axis=tuple(range(1, leaving.ndim)))
    wanted = _input_ranges(entering, group).reshape(len(ranges), pair.repeat).max(axis=1)
    usable = (ranges > 0) & (wanted > 0)  # a dead channel has no range to share
    scale = np.ones(len(ranges))
    scale[usable] = np.clip(np.sqrt(ranges[usable] / wanted[usable]), 1 / _LARGEST, _LARGEST)
    leaving /= scale.reshape(-1, *[1] * (leaving.ndim - 1))
    if len(first.input) > 2 and first.input[2]:
        arrays[first.input[2]] /= scale
    _scale_inputs(entering, group, np.repeat(scale, pair.repeat))
    return float(np.abs(np.log(scale)).max())


def _by_output(node: NodeProto, weight: Array) -> Array:
    return weight.T if node.op_type == "Gemm" and not _attribute(node, "transB", 0) else weight


def _by_input(node: NodeProto, weight: Array) -> tuple[Array, int]:
    """A view [out, in per group, ...] of the weight, and the number of groups."""
    if node.op_type == "Gemm":
        return (weight if _attribute(node, "transB", 0) else weight.T), 1
    return weight, int(_attribute(node, "group", 1))


def _input_ranges(weight: Array, group: int) -> Array:
    """Largest |weight| that each input channel meets."""
    split = weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1)
    ranges: Array = np.abs(split).max(axis=(1, 3)).reshape(-1)
    return ranges


def _scale_inputs(weight: Array, group: int, scale: Array) -> None:
    per_group, outputs = weight.shape[1], weight.shape[0] // group
    for number in range(group):
        part = scale[number * per_group : (number + 1) * per_group]
        weight[number * outputs : (number + 1) * outputs] *= part.reshape(1, -1, *[1] * (weight.ndim - 2))


def _is_relu(node: NodeProto, constants: dict[str, Array]) -> bool:
    """A Clip from 0 up without an end."""
    low, high = (
        constants.get(node.input[place]) if len(node.input) > place and node.input[place] else None for place in (1, 2)
    )
    bounded = len(node.input) > 2 and bool(node.input[2]) and (high is None or np.isfinite(high).any())
    return not bounded and low is not None and float(low) == 0.0


def _flattens(node: NodeProto, constants: dict[str, Array]) -> bool:
    """[N, C, ...] to [N, C * ...], with the values of a channel side by side."""
    if node.op_type == "Flatten":
        return bool(_attribute(node, "axis", 1) == 1)
    shape = constants.get(node.input[1]) if node.op_type == "Reshape" else None
    return shape is not None and shape.tolist() == [0, -1] and not _attribute(node, "allowzero", 0)


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _names(nodes: dict[str, NodeProto], pair: Pair) -> list[str]:
    first, second = nodes[pair.first], nodes[pair.second]
    return [n for n in [*first.input[1:], second.input[1]] if n]
