"""What an ONNX model costs on paper: its parameters and multiply-accumulates."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import onnx
from onnx import ModelProto, NodeProto, TensorProto

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_COUNTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_UNCOUNTED = ("LSTM", "GRU", "RNN", "Einsum", "Attention")


@dataclass(frozen=True)
class OnnxCost:
    """``parameters``: floating-point constants but for scalars. ``macs``: multiply-accumulates of one sample in
    convolutions and matrix products, the work that grows with the model; None where a shape cannot be told.
    ``uncounted``: operators that multiply matrices but are not in the count."""

    parameters: int
    macs: int | None
    uncounted: tuple[str, ...]


def onnx_cost(model: ModelProto, shapes: dict[str, tuple[int, ...]]) -> OnnxCost:
    """Count a floating-point model for inputs of these shapes (batch of one), by input name."""
    sized = ModelProto()
    sized.CopyFrom(model)
    del sized.graph.value_info[:]
    for value in sized.graph.input:
        if value.name in shapes:
            dims = value.type.tensor_type.shape.dim
            for dim, size in zip(dims, shapes[value.name], strict=True):
                dim.dim_value = size
    for value in sized.graph.output:
        value.type.tensor_type.ClearField("shape")
    sized = onnx.shape_inference.infer_shapes(sized, data_prop=True)
    known = {i.name: tuple(i.dims) for i in sized.graph.initializer}
    for value in [*sized.graph.input, *sized.graph.value_info, *sized.graph.output]:
        dims = value.type.tensor_type.shape.dim
        if all(d.HasField("dim_value") for d in dims):
            known.setdefault(value.name, tuple(d.dim_value for d in dims))
    macs: int | None = 0
    for node in sized.graph.node:
        if node.domain == "" and node.op_type in _COUNTED:
            count = _macs(node, known)
            macs = None if macs is None or count is None else macs + count
    parameters = sum(prod(i.dims) for i in sized.graph.initializer if i.data_type in _FLOATS and i.dims)
    uncounted = sorted({n.op_type for n in sized.graph.node if n.op_type in _UNCOUNTED})
    return OnnxCost(parameters, macs, tuple(uncounted))


def _macs(node: NodeProto, known: dict[str, tuple[int, ...]]) -> int | None:
    left, right, out = known.get(node.input[0]), known.get(node.input[1]), known.get(node.output[0])
    if left is None or right is None or out is None:
        return None
    if node.op_type == "Conv":  # weight [out, in/groups, kernel...]: each output element sums over the rest
        return prod(out) * prod(right[1:])
    if node.op_type == "ConvTranspose":  # weight [in, out/groups, kernel...]: each input element spreads over the rest
        return prod(left) * prod(right[1:])
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return prod(out) * left[0 if transposed else 1]
    return prod(out) * left[-1]
