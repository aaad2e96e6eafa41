"""Means over all places of a picture, by the name under which they have an int8 kernel.

torch.onnx writes ``AdaptiveAvgPool2d(1)`` and ``x.mean((2, 3))`` as ReduceMean, which ONNX Runtime computes in floats
between a DequantizeLinear and a QuantizeLinear. As GlobalAveragePool the sum is one of whole numbers.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper


def name_means(model: ModelProto) -> int:
    """Change ReduceMean over all spatial axes to GlobalAveragePool, in place; how many there were.

    Where the axes are dropped a Flatten follows. One over other axes, or of a tensor whose rank is not known, stays.
    """
    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*inferred.input, *inferred.value_info)
        if value.type.tensor_type.HasField("shape")
    }
    nodes: list[NodeProto] = []
    found = 0
    for node in graph.node:
        rank = ranks.get(node.input[0], 0) if node.op_type == "ReduceMean" else 0
        if rank < 3 or _axes(node, constants, rank) != set(range(2, rank)):
            nodes.append(node)
            continue
        found += 1
        if _attribute(node, "keepdims", 1):
            nodes.append(helper.make_node("GlobalAveragePool", node.input[:1], node.output, name=node.name))
        else:
            pooled = f"{node.output[0]}_pooled"
            nodes.append(helper.make_node("GlobalAveragePool", node.input[:1], [pooled], name=node.name))
            nodes.append(helper.make_node("Flatten", [pooled], node.output, axis=1))
    del graph.node[:]
    graph.node.extend(nodes)
    return found


def _axes(node: NodeProto, constants: dict[str, TensorProto], rank: int) -> set[int]:
    """Those that are summed over, counted from the front; none where they are not known."""
    axes = _attribute(node, "axes", None)
    if axes is None and len(node.input) > 1 and node.input[1] in constants:
        axes = numpy_helper.to_array(constants[node.input[1]]).ravel().tolist()
    return {axis % rank for axis in axes or ()}


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
