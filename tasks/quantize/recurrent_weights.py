"""int8 weights for GRU, LSTM and RNN operators, for which ONNX Runtime has no int8 kernels on CPUs (LSTM's aside).

Written as Cast and Mul, which ONNX Runtime folds into fp32 when it loads the file: they are a quarter of the bytes on
disk, and run as fast as in fp32.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tasks.quantize.weight_only import Array

RECURRENT = ("GRU", "LSTM", "RNN")
_MATRICES = (1, 2)
"""Of the inputs: what reads the step, and what reads the state before; both [directions, gates x units, ...]."""


def recurrent_layers(model: ModelProto) -> list[NodeProto]:
    """Recurrent nodes with constant weights."""
    constants = {i.name for i in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type in RECURRENT and node.domain == "" and constants.issuperset(node.input[1:3])
    ]


def round_recurrent_weights(model: ModelProto) -> tuple[str, ...]:
    """Round them in place to int8, symmetric, with a scale per gate and unit; labels of the layers."""
    graph = model.graph
    layers = {node.name: node for node in recurrent_layers(model)}
    tensors = {i.name: i for i in graph.initializer}
    labels = tuple(f"{n.op_type} {n.input[1]} {list(tensors[n.input[1]].dims)}" for n in layers.values())
    nodes: list[NodeProto] = []
    made: set[str] = set()
    for node in graph.node:
        for place in _MATRICES if node.name in layers else ():
            weight = node.input[place]
            name = node.input[place] = f"{weight}_float"
            if weight not in made:
                numbers, scale = _rounded(numpy_helper.to_array(tensors[weight]))
                stored = [
                    numpy_helper.from_array(numbers, f"{weight}_int8"),
                    numpy_helper.from_array(scale, f"{weight}_scale"),
                ]
                graph.initializer.extend(stored)
                cast = f"{weight}_cast"
                nodes += [
                    helper.make_node("Cast", [stored[0].name], [cast], name=cast, to=TensorProto.FLOAT),
                    helper.make_node("Mul", [cast, stored[1].name], [name], name=name),
                ]
                made.add(weight)
        nodes.append(node)
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    for tensor in [tensors[name] for name in made - read]:
        graph.initializer.remove(tensor)
    return labels


def _rounded(weight: Array) -> tuple[Array, Array]:
    """int8 [directions, rows, columns] and scales [directions, rows, 1]."""
    scale = np.abs(weight).max(axis=2, keepdims=True) / 127
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale
