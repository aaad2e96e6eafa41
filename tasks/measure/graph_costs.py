"""What an ONNX graph costs on paper: parameters and multiply-accumulates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, shape_inference

_CONVOLUTIONS = {"Conv", "ConvInteger", "QLinearConv"}
_PRODUCTS = {"MatMul", "MatMulInteger", "QLinearMatMul", "Gemm"}
# Where the second factor (the weight) is among the inputs.
_WEIGHT = {"QLinearConv": 3, "QLinearMatMul": 3}
_TRANSPOSED_CONVOLUTION = "ConvTranspose"
# Inputs that hold scales and zero points, by operator.
_BOOKKEEPING = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
}


@dataclass(frozen=True)
class GraphCosts:
    """``parameters``: weight elements, however many bits each has. ``macs``: for one sample, None if unknown."""

    parameters: int
    macs: int | None


def graph_costs(data: bytes) -> GraphCosts:
    """Count parameters and multiply-accumulates of a model at batch 1.

    Convolutions and matrix products count; element-wise work does not (the usual definition, as in torch's flop
    counters halved). Dimensions other than the batch that are free make ``macs`` None.

    Args:
        data: the serialised ModelProto.
    """
    model = onnx.load_model_from_string(data)
    return GraphCosts(_parameters(model.graph), _macs(model))


def _parameters(graph: Any) -> int:
    """Elements of all weight initializers; scales, zero points, shapes and scalars are not parameters."""
    side: set[str] = set()
    dynamic_scales = {node.output[1] for node in graph.node if node.op_type == "DynamicQuantizeLinear"}
    for node in graph.node:
        side.update(node.input[i] for i in _BOOKKEEPING.get(node.op_type, ()) if i < len(node.input))
        if node.op_type == "Mul" and dynamic_scales & set(node.input):  # input scale times weight scale
            side.update(node.input)
    return sum(
        size
        for tensor in graph.initializer
        if (size := math.prod(tensor.dims)) > 1 and tensor.data_type != TensorProto.INT64 and tensor.name not in side
    )


def _macs(model: Any) -> int | None:
    initializers = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        shape = value.type.tensor_type.shape
        if value.name not in initializers and len(shape.dim) and not shape.dim[0].HasField("dim_value"):
            shape.dim[0].dim_value = 1
    del model.graph.value_info[:]  # what an exporter or quantizer left behind may contradict the batch of 1
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = shape_inference.infer_shapes(model, data_prop=True)
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape"):
            shapes[value.name] = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in dims)
    total = 0
    for node in inferred.graph.node:
        macs = _node_macs(node, shapes)
        if macs is None:
            return None
        total += macs
    return total


def _node_macs(node: Any, shapes: dict[str, tuple[int, ...]]) -> int | None:
    if node.op_type in _CONVOLUTIONS:
        weight, output = shapes.get(node.input[_WEIGHT.get(node.op_type, 1)]), shapes.get(node.output[0])
        return _product(output, weight[1:] if weight else None)
    if node.op_type == _TRANSPOSED_CONVOLUTION:
        return _product(shapes.get(node.input[0]), (shapes.get(node.input[1]) or (-1,))[1:])
    if node.op_type in _PRODUCTS:
        left = shapes.get(node.input[0])
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        inner = left[0 if transposed else -1] if left else -1
        return _product(shapes.get(node.output[0]), (inner,))
    return 0


def _product(first: tuple[int, ...] | None, second: tuple[int, ...] | None) -> int | None:
    if first is None or second is None or min((*first, *second), default=1) < 0:
        return None
    return math.prod(first) * math.prod(second)
