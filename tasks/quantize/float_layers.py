"""Layers left in fp32 inside an int8 model must stay so when ONNX Runtime loads the file."""

from __future__ import annotations

from math import prod

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper


def keep_in_float(model: ModelProto) -> None:
    """Change the QDQ model in place so that ONNX Runtime does not quantize what was left in fp32.

    While it loads a file, ONNX Runtime 1.31 rounds the fp32 weights of a Conv, ConvTranspose or Gemm between a
    DequantizeLinear and a QuantizeLinear to int8, all of them with one scale (WeightBiasQuantization, basic level): a
    layer taken out with ``nodes_to_exclude`` would run in worse int8 than before. It does so only where the input has
    one scale; here each such layer gets a DequantizeLinear of its own with that same scale once per channel.
    """
    graph = model.graph
    tensors = {i.name: i for i in graph.initializer}
    made: dict[str, NodeProto] = {n.output[0]: n for n in graph.node if n.op_type == "DequantizeLinear"}
    nodes: list[NodeProto] = []
    for original in graph.node:
        node = NodeProto.FromString(original.SerializeToString())
        weight = tensors.get(node.input[1]) if node.op_type in ("Conv", "ConvTranspose", "Gemm") else None
        source = made.get(node.input[0])
        if weight is not None and source is not None and prod(tensors[source.input[1]].dims) == 1:
            name = f"{node.name}_input"
            constants = [f"{name}_scale", f"{name}_zero_point"][: len(source.input) - 1]
            for old, new in zip(source.input[1:], constants, strict=True):
                repeated = np.repeat(numpy_helper.to_array(tensors[old]).reshape(1), _channels(node, list(weight.dims)))
                graph.initializer.append(numpy_helper.from_array(repeated, new))
            nodes.append(helper.make_node("DequantizeLinear", [source.input[0], *constants], [name], name=name, axis=1))
            node.input[0] = name
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _channels(node: NodeProto, weight: list[int]) -> int:
    attributes: dict[str, int] = {a.name: a.i for a in node.attribute}
    if node.op_type == "Conv":
        return weight[1] * attributes.get("group", 1)
    return weight[1] if node.op_type == "Gemm" and attributes.get("transB", 0) else weight[0]
