"""Fully connected layers as they stand in a graph: MatMul or Gemm with a constant matrix, and the bias after it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

Array = NDArray[Any]


def is_product(node: NodeProto, weight: Array) -> bool:
    """Whether the node is x @ W (+ b) and nothing else; ``weight``: its second input."""
    factors = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    plain = not factors.get("transA", 0) and factors.get("alpha", 1.0) == factors.get("beta", 1.0) == 1.0
    return node.op_type in ("Gemm", "MatMul") and weight.ndim == 2 and plain


def as_matmul(node: NodeProto, weight: Array) -> tuple[NodeProto, list[NodeProto], Array]:
    """The layer as MatMul, the Add that follows it, and its weight [K, N]."""
    if node.op_type == "MatMul":
        return node, [], weight
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    bias = list(node.input[2:3]) if len(node.input) > 2 and node.input[2] else []
    middle = f"{node.name}_product" if bias else node.output[0]
    product = helper.make_node("MatMul", list(node.input[:2]), [middle], name=node.name)
    tail = [helper.make_node("Add", [middle, *bias], [node.output[0]], name=f"{node.name}_bias")] if bias else []
    return product, tail, np.ascontiguousarray(weight.T) if transposed else weight
