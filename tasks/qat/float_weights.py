"""The weights before they were rounded, found in the fp32 file that an int8 file was made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, numpy_helper

from tasks.qat.qdq_graph import LAYERS, Array, Weight, read_qdq

_FAR = 1.0
"""Steps: a weight this far from its rounded value was changed on the way (equalised, corrected)."""


def float_weights(quantized: ModelProto, file: bytes, folder: Path) -> dict[str, Array]:
    """The float weights by output name of their DequantizeLinear, of those layers where the fp32 file has them.

    Layers are matched in the order of the graph, after the folding that quantization does first. A layer whose
    weights differ in shape, or by more than rounding, is left out.

    Args:
        file: the fp32 ONNX file.
        folder: a private one.
    """
    written = folder / "folded.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(written)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    folded = onnx.load_model(written)
    constants = {i.name: i for i in folded.graph.initializer}
    originals = [
        numpy_helper.to_array(constants[node.input[1]])
        for node in folded.graph.node
        if node.op_type in LAYERS and node.input[1] in constants
    ]
    graph = read_qdq(quantized)
    known = set(graph.weights) | set(graph.floats)
    layers = [n for n in graph.model.graph.node if n.op_type in LAYERS and n.input[1] in known]
    if len(layers) != len(originals):
        return {}
    return {
        node.input[1]: original
        for node, original in zip(layers, originals, strict=True)
        if node.input[1] in graph.weights and _fits(graph.weights[node.input[1]], original)
    }


def _fits(weight: Weight, original: Array) -> bool:
    if original.shape != weight.data.shape:
        return False
    shape = [1] * original.ndim
    if weight.scale.size > 1:
        shape[weight.axis] = -1
    steps = original / weight.scale.reshape(shape) - weight.data
    return bool(np.abs(steps).max(initial=0.0) < _FAR)
