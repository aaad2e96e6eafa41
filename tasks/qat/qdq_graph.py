"""What is quantized in a QDQ graph, found and told apart: activations, weights, biases, and who shares a scale."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from tasks.running.errors import QatUnsupported

Array = NDArray[Any]

MOVING = {"MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Slice", "Gather"}
"""What comes out of these went in: ONNX Runtime runs them on integers where both sides have one scale."""
LAYERS = ("Conv", "Gemm", "MatMul")
_RANGES: dict[int, tuple[int, int]] = {TensorProto.UINT8: (0, 255), TensorProto.INT8: (-128, 127)}


@dataclass(frozen=True)
class Activation:
    """One scale of activations. ``scale_name`` and ``zero_name`` are initializers of its own in the separated graph."""

    scale_name: str
    zero_name: str
    scale: Array
    zero_point: int
    lowest: int
    highest: int


@dataclass(frozen=True)
class Weight:
    """One int8 weight; ``scale`` holds one element, or one per index of ``axis``."""

    data_name: str
    scale_name: str
    data: Array
    scale: Array
    axis: int


@dataclass(frozen=True)
class Bias:
    """One int32 bias; its scale is that of its layer's activation ``source`` times that of ``weight``, by output."""

    data_name: str
    scale_name: str
    data: Array
    scale: Array
    source: str
    weight: str


@dataclass
class QdqGraph:
    """A QDQ model in which nothing shares an initializer by accident.

    ``activations``: by number. ``quantized``: the number by output name of each QuantizeLinear. ``kept``: those of
    QuantizeLinear outputs whose input is on their grid already. ``weights`` and ``biases``: by output name of their
    DequantizeLinear. ``dequantized``: outputs of DequantizeLinear to the QuantizeLinear output that they read.
    ``floats``: weights and biases that stay float, by the name of an initializer of their own. ``repeated``: scales
    written once per channel though all are one, for the sake of a layer left in float: initializer to number
    and count.
    """

    model: ModelProto
    constants: dict[str, Array]
    makers: dict[str, NodeProto]
    activations: dict[int, Activation] = field(default_factory=dict)
    quantized: dict[str, int] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    weights: dict[str, Weight] = field(default_factory=dict)
    biases: dict[str, Bias] = field(default_factory=dict)
    dequantized: dict[str, str] = field(default_factory=dict)
    floats: dict[str, Array] = field(default_factory=dict)
    repeated: dict[str, tuple[int, int]] = field(default_factory=dict)

    def source(self, name: str) -> str | None:
        """The QuantizeLinear output behind a tensor, if only a DequantizeLinear and moving operators lie between."""
        node = self.makers.get(name)
        while node is not None and node.op_type in MOVING:
            name = node.input[0]
            node = self.makers.get(name)
        return self.dequantized.get(name)


def read_qdq(model: ModelProto) -> QdqGraph:
    """Find all quantizers of the model; the model itself is left alone.

    Raises:
        QatUnsupported: the quantizers are not as post-training quantization writes them; names the node.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = QdqGraph(
        copy,
        {i.name: numpy_helper.to_array(i) for i in copy.graph.initializer},
        {name: node for node in copy.graph.node for name in node.output},
    )
    for node in copy.graph.node:
        if node.op_type == "QuantizeLinear":
            _read_quantize(graph, node)
        elif node.op_type == "DequantizeLinear" and node.input[0] not in graph.constants:
            _read_dequantize(graph, node)
    for node in copy.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in graph.constants:
            _read_weight(graph, node)
    for node in copy.graph.node:
        if node.op_type in LAYERS and len(node.input) > 2:
            _read_bias(graph, node)
    _read_floats(graph)
    if not graph.weights or not graph.activations:
        raise QatUnsupported(
            "the ONNX file has no int8 weights and activations behind DequantizeLinear; quantize it with "
            "quantize.methods [static] first"
        )
    return graph


def separate(graph: QdqGraph) -> None:
    """Give every scale, zero point, weight and bias an initializer of its own in ``graph.model``.

    Finished files merge equal constants, two layers' zero biases for instance; learned ones are equal no more.
    """
    used: dict[str, Array] = dict(graph.floats)
    for node in graph.model.graph.node:
        name = node.output[0]
        if name in graph.quantized or name in graph.dequantized:
            number = graph.quantized[graph.dequantized.get(name, name)]
            mine = graph.activations[number]
            scale_name, zero_name, scale = mine.scale_name, mine.zero_name, graph.constants[node.input[1]]
            if scale.shape != mine.scale.shape:
                scale_name, zero_name = f"{name}/scale", f"{name}/zero"
                graph.repeated[scale_name] = (number, scale.size)
            node.input[1], used[scale_name] = scale_name, scale
            if len(node.input) > 2:
                node.input[2], used[zero_name] = zero_name, graph.constants[node.input[2]]
        elif name in graph.weights or name in graph.biases:
            tensor = graph.weights.get(name) or graph.biases[name]
            node.input[0], node.input[1] = tensor.data_name, tensor.scale_name
            used[tensor.data_name], used[tensor.scale_name] = tensor.data, tensor.scale
    kept = {name for node in graph.model.graph.node for name in node.input}
    kept |= {value.name for value in graph.model.graph.output}
    tensors = [t for t in graph.model.graph.initializer if t.name in kept and t.name not in used]
    tensors += [numpy_helper.from_array(value, name) for name, value in used.items()]
    del graph.model.graph.initializer[:]
    graph.model.graph.initializer.extend(tensors)


def say(node: NodeProto) -> str:
    """The node as messages name it."""
    return f"node {node.name or node.output[0]!r} ({node.op_type})"


def attribute(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute."""
    return next((a.i for a in node.attribute if a.name == name), default)


def _constant(graph: QdqGraph, node: NodeProto, position: int, what: str) -> Array:
    value = graph.constants.get(node.input[position])
    if value is None:
        raise QatUnsupported(f"{say(node)}: its {what} is computed; training needs it as a constant of the file")
    return value


def _zero_point(graph: QdqGraph, node: NodeProto) -> Array:
    if len(node.input) > 2 and node.input[2]:
        return _constant(graph, node, 2, "zero point")
    return np.zeros((), np.uint8)  # the default of QuantizeLinear


def _read_quantize(graph: QdqGraph, node: NodeProto) -> None:
    scale, zero = _constant(graph, node, 1, "scale"), _zero_point(graph, node)
    kind = numpy_helper.from_array(zero).data_type
    if scale.size != 1 or zero.size != 1 or kind not in _RANGES:
        raise QatUnsupported(
            f"{say(node)}: activations have {scale.size} scales and {zero.dtype} zero points; training knows one scale "
            "and uint8 or int8"
        )
    output = node.output[0]
    before = graph.source(node.input[0])
    if before is not None:
        mine = graph.activations[graph.quantized[before]]
        if mine.scale == scale and mine.zero_point == int(zero) and mine.lowest == _RANGES[kind][0]:
            graph.quantized[output] = graph.quantized[before]
            graph.kept.add(output)
            return
    number = len(graph.activations)
    graph.activations[number] = Activation(f"{output}/scale", f"{output}/zero", scale, int(zero.item()), *_RANGES[kind])
    graph.quantized[output] = number


def _read_dequantize(graph: QdqGraph, node: NodeProto) -> None:
    number = graph.quantized.get(node.input[0])
    if number is None:
        raise QatUnsupported(
            f"{say(node)}: its input is neither a constant nor what QuantizeLinear made; training knows graphs of "
            "pairs of QuantizeLinear and DequantizeLinear"
        )
    mine = graph.activations[number]
    if np.any(_constant(graph, node, 1, "scale") != mine.scale) or np.any(_zero_point(graph, node) != mine.zero_point):
        raise QatUnsupported(f"{say(node)}: its scale or zero point is not that of the QuantizeLinear before it")
    graph.dequantized[node.output[0]] = node.input[0]


def _read_weight(graph: QdqGraph, node: NodeProto) -> None:
    output = node.output[0]
    if not any(output in n.input[:2] for n in graph.model.graph.node if n.op_type in LAYERS):
        return  # a bias, or a constant of Add and the like, which stays as it is
    data, scale = graph.constants[node.input[0]], _constant(graph, node, 1, "scale")
    if data.dtype != np.int8 or np.any(_zero_point(graph, node)):
        raise QatUnsupported(
            f"{say(node)}: the weight is {data.dtype} or has a zero point other than 0; training knows symmetric int8"
        )
    axis = attribute(node, "axis", 1) % max(1, data.ndim)
    graph.weights[output] = Weight(f"{output}/weight", f"{output}/scale", data, scale, axis)


def _read_bias(graph: QdqGraph, node: NodeProto) -> None:
    name = node.input[2]
    maker = graph.makers.get(name)
    if maker is None or maker.op_type != "DequantizeLinear" or maker.input[0] not in graph.constants:
        return
    data, scale = graph.constants[maker.input[0]], _constant(graph, maker, 1, "scale")
    if data.dtype != np.int32:
        return
    source = graph.source(node.input[0])
    if source is None or node.input[1] not in graph.weights or name in graph.biases:
        raise QatUnsupported(
            f"{say(node)}: its int32 bias needs a quantized input and an int8 weight of its own, whose scales make "
            "the bias's scale"
        )
    graph.biases[name] = Bias(f"{name}/bias", f"{name}/scale", data, scale, source, node.input[1])


def _read_floats(graph: QdqGraph) -> None:
    """Weights left in float and read once, their biases, and vectors added to the product of a MatMul."""
    nodes = graph.model.graph.node
    uses: dict[str, int] = {}
    for name in [name for node in nodes for name in node.input]:
        uses[name] = uses.get(name, 0) + 1

    def own(node: NodeProto, position: int) -> None:
        name = f"{node.output[0]}/{position}"
        graph.floats[name] = graph.constants[name] = graph.constants[node.input[position]]
        node.input[position] = name

    def is_float(name: str) -> bool:
        return name in graph.constants and graph.constants[name].dtype == np.float32

    for node in nodes:
        if node.op_type in LAYERS:
            single = is_float(node.input[1]) and uses[node.input[1]] == 1 and graph.constants[node.input[1]].ndim > 1
            if single:
                own(node, 1)
            if len(node.input) > 2 and is_float(node.input[2]) and (single or node.input[1] in graph.weights):
                own(node, 2)
        elif node.op_type == "Add":
            for position, other in ((0, 1), (1, 0)):
                maker = graph.makers.get(node.input[other])
                after = maker is not None and maker.op_type == "MatMul"
                if after and is_float(node.input[position]) and graph.constants[node.input[position]].ndim == 1:
                    own(node, position)
