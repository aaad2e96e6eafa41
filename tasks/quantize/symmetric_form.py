"""The symmetric form: int8 as TensorRT, NPUs and FPGA tools take it.

Their parsers refuse zero points other than 0 (NVIDIA/TensorRT issue 2774) and biases that are quantized, and join a
layer with the activation behind it only where nothing is rounded between them (NVIDIA, "Working with Quantized Types":
Q/DQ placement). ONNX Runtime's quantizer gives zero points of 0 when asked; the rest is done here.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from tasks.quantize.prepared_graph import LAYERS

_JOINED = ("Relu", "Clip")


def suit_accelerators(model: ModelProto) -> None:
    """Change a QDQ model in place: int32 biases become fp32, and a ReLU reads its layer's sums before they are rounded.

    What nothing reads any more is left for :func:`tasks.onnx_models.onnx_graph.strip`.
    """
    graph = model.graph
    tensors = {i.name: i for i in graph.initializer}
    for node in [n for n in graph.node if n.op_type == "DequantizeLinear"]:
        numbers = tensors.get(node.input[0])
        if numbers is not None and numbers.data_type == TensorProto.INT32:
            scale = numpy_helper.to_array(tensors[node.input[1]]).astype(np.float64)
            values = (numpy_helper.to_array(numbers) * scale).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
            graph.node.remove(node)
    made: dict[str, NodeProto] = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        rounded = made.get(node.input[0]) if node.op_type in _JOINED else None
        source = made.get(rounded.input[0]) if rounded and rounded.op_type == "DequantizeLinear" else None
        layer = made.get(source.input[0]) if source and source.op_type == "QuantizeLinear" else None
        if source and layer and layer.op_type in LAYERS:
            node.input[0] = source.input[0]
