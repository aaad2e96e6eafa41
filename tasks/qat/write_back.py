"""What was learned, as the initializers of the ONNX file that it came from."""

from __future__ import annotations

import numpy as np
import torch
from onnx import ModelProto, numpy_helper

from tasks.qat.qdq_graph import Array
from tasks.qat.torch_graph import TorchGraph


def write_back(module: TorchGraph) -> ModelProto:
    """The module's QDQ model with its weights, biases and scales; nodes and zero points are as they were.

    Where nothing was learned the values are those of the file that was read, bit for bit, except of biases beyond
    2^24 steps, which float32 does not hold exactly, and of float biases between two steps, which no file of ours has.
    """
    graph = module.graph
    values: dict[str, Array] = {}
    with torch.no_grad():
        for number, activation in graph.activations.items():
            values[activation.scale_name] = _numpy(module.quantizer(number).scale()).reshape(activation.scale.shape)
        for name, (number, count) in graph.repeated.items():
            values[name] = np.repeat(_numpy(module.quantizer(number).scale()), count)
        for name, weight in graph.weights.items():
            quantizer = module.weight(name)
            values[weight.data_name] = _numpy(quantizer.integers())
            values[weight.scale_name] = _numpy(quantizer.scale()).reshape(weight.scale.shape)
        for name, layer in module.bias_layers().items():
            bias = graph.biases[name]
            values[bias.data_name] = _numpy(layer.bias_integers()).astype(np.int32)
            values[bias.scale_name] = _numpy(layer.step()).reshape(bias.scale.shape)
        values.update({name: _numpy(value) for name, value in module.trained_floats().items()})
    model = ModelProto()
    model.CopyFrom(graph.model)
    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return model


def _numpy(tensor: torch.Tensor) -> Array:
    return tensor.detach().cpu().numpy()
