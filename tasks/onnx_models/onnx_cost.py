"""What an ONNX model costs on paper: its parameters and multiply-accumulates, the same in fp32 and in int8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

Shapes = Mapping[str, tuple[int, ...]]

_CONVOLUTIONS = ("Conv", "ConvInteger", "ConvTranspose", "QLinearConv")
_PRODUCTS = ("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul")
_UNCOUNTED = ("LSTM", "GRU", "RNN", "Einsum", "Attention")
_WEIGHT = {"QLinearConv": 3, "QLinearMatMul": 3}
"""Where the weight is among the inputs, if not second."""
_SCALES_AND_ZEROS = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "MatMulInteger": (2, 3),
    "ConvInteger": (2, 3),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "MatMulNBits": (2, 3),
    "GatherBlockQuantized": (2, 3),
    "GroupQueryAttention": (7, 8, 12, 13),  # the cosines and sines of places; scales of keys and values
}
_PASSING = ("Cast", "Reshape", "Unsqueeze", "Sub", "Concat", "BitwiseAnd", "BitShift", "Gather", "Slice")
"""What a weight of small numbers passes on its way to its scale, always as the first input."""
_INDICES = (TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING)


@dataclass(frozen=True)
class OnnxCost:
    """``parameters``: elements of weights and biases, however many bits each has. ``macs``: multiply-accumulates of one
    sample in convolutions and matrix products, the work that grows with the model; None where a shape is not known.
    ``uncounted``: operators that multiply matrices but are not in the count."""

    parameters: int
    macs: int | None
    uncounted: tuple[str, ...]


def onnx_cost(model: ModelProto, shapes: Shapes | None = None) -> OnnxCost:
    """Count the model at batch 1.

    Args:
        shapes: of inputs with further free dimensions, by name.
    """
    macs = layer_macs(model, shapes)
    total = None if None in macs.values() else sum(m for m in macs.values() if m is not None)
    uncounted = sorted({n.op_type for n in model.graph.node if n.op_type in _UNCOUNTED})
    return OnnxCost(_parameters(model.graph), total, tuple(uncounted))


def layer_macs(model: ModelProto, shapes: Shapes | None = None) -> dict[str, int | None]:
    """Multiply-accumulates of each convolution and matrix product at batch 1, by the name of its output."""
    sized = ModelProto()
    sized.CopyFrom(model)
    del sized.graph.value_info[:]  # what an exporter left may contradict the batch of 1
    constants = {i.name for i in sized.graph.initializer}
    for value in sized.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in constants:
            continue
        if value.name in (shapes or {}):
            for dim, size in zip(dims, (shapes or {})[value.name], strict=True):
                dim.dim_value = size
        elif dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = 1
    for value in sized.graph.output:
        value.type.tensor_type.ClearField("shape")
    sized = onnx.shape_inference.infer_shapes(sized, data_prop=True)
    known = {i.name: tuple(i.dims) for i in sized.graph.initializer}
    for value in [*sized.graph.input, *sized.graph.value_info, *sized.graph.output]:
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            known.setdefault(value.name, tuple(d.dim_value for d in kind.shape.dim))
    return {n.output[0]: _macs(n, known) for n in sized.graph.node if n.op_type in _CONVOLUTIONS + _PRODUCTS}


def _macs(node: NodeProto, known: Shapes) -> int | None:
    position = _WEIGHT.get(node.op_type, 1)
    left, right, out = (known.get(name) for name in (node.input[0], node.input[position], node.output[0]))
    if left is None or right is None or out is None:
        return None
    if node.op_type == "ConvTranspose":  # weight [in, out/groups, kernel...]: each input element spreads over the rest
        return prod(left) * prod(right[1:])
    if node.op_type in _CONVOLUTIONS:  # weight [out, in/groups, kernel...]: each output element sums over the rest
        return prod(out) * prod(right[1:])
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return prod(out) * left[0 if transposed else -1]


def _bits(node: NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "bits"), 4)


def _parameters(graph: GraphProto) -> int:
    """Constants that are no index, scalar, scale or zero point; of packed ones two for each byte."""
    passed_on = {node.output[0]: node.input[0] for node in graph.node if node.op_type in _PASSING}

    def origin(name: str) -> str:
        while name in passed_on:
            name = passed_on[name]
        return name

    packed = {origin(node.input[0]) for node in graph.node if node.op_type == "BitShift"}
    packed |= {node.input[1] for node in graph.node if node.op_type == "MatMulNBits" and _bits(node) == 4}
    whole = {i.name for i in graph.initializer if i.data_type == TensorProto.INT8} | packed
    whole |= {node.output[0] for node in graph.node if node.op_type in ("MatMulInteger", "ConvInteger")}
    whole |= {node.output[1] for node in graph.node if node.op_type == "DynamicQuantizeLinear"}
    aside: set[str] = set()
    for node in graph.node:
        aside.update(origin(node.input[i]) for i in _SCALES_AND_ZEROS.get(node.op_type, ()) if i < len(node.input))
        origins = {origin(name) for name in node.input}
        if node.op_type == "Mul" and origins & whole:  # a scale of weights
            aside |= origins - whole
    return sum(
        prod(i.dims) * (2 if i.name in packed else 1)
        for i in graph.initializer
        if i.dims and i.data_type not in _INDICES and i.name not in aside
    )
