"""Bias correction: what rounding shifts on average is given back through the bias.

Nagel et al. 2019, section 4.2 (arXiv:1906.04721), empirical: E[fp32] - E[int8] of each layer's output, per output
channel, measured on calibration rows, layer after layer so that each sees what the corrected ones before it answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from tasks.quantize.calibration import Feeds
from tasks.quantize.layer_outputs import channel_means
from tasks.quantize.prepared_graph import quantizable

Shifts = dict[str, NDArray[np.float64]]
"""What to add to the bias of each layer, [channels], by node name."""

_ABSURD = 2.0
"""As NNCF's threshold: a shift this many times the layer's own size is no rounding, and giving it back does harm."""


@dataclass(frozen=True)
class Correction:
    """The shifts of the layers corrected, and ``layer: reason`` for those that were not."""

    shifts: Shifts
    skipped: tuple[str, ...]


def add_biases(model: ModelProto) -> ModelProto:
    """A copy in which each Conv and Gemm has a bias, zeros where it had none, so that there is one to correct."""
    result = ModelProto()
    result.CopyFrom(model)
    sizes = {i.name: tuple(i.dims) for i in result.graph.initializer}
    for node in quantizable(result):
        if node.op_type == "MatMul" or (len(node.input) > 2 and node.input[2]):
            continue
        transposed = node.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in node.attribute)
        zeros = np.zeros(sizes[node.input[1]][1 if transposed else 0], np.float32)
        name = f"{node.name}_bias"
        result.graph.initializer.append(numpy_helper.from_array(zeros, name))
        node.input[2:] = [name]
    return result


def bias_shifts(prepared: ModelProto, quantized: ModelProto, feeds: Feeds) -> Correction:
    """Measure the shift of each quantized layer that has a bias.

    A layer is skipped where its largest shift is more than twice the larger of its largest |bias| and the spread of
    its fp32 output: the model is broken there, not shifted.

    Args:
        prepared: the fp32 graph that was quantized; node names tell the layers.
        quantized: its QDQ form, with int32 biases (see :func:`add_biases`).
        feeds: calibration rows.
    """
    layers = quantizable(prepared)
    wanted = channel_means(prepared, layers, feeds)
    shifts: Shifts = {}
    skipped = []
    for layer in layers:
        bias = _biases(quantized).get(layer.name)
        if bias is None:
            if layer.op_type != "MatMul":
                skipped.append(f"{layer.name}: its bias is not quantized")
            continue
        mean, square = wanted[layer.name]
        found = channel_means(shift_biases(quantized, shifts), [layer], feeds)[layer.name][0]
        shift = mean - found
        spread = float(np.sqrt(max(0.0, float(np.mean(square - mean**2)))))
        size = max(float(np.abs(bias.values).max(initial=0.0)), spread)
        if not np.isfinite(shift).all() or np.abs(shift).max(initial=0.0) > _ABSURD * size:
            skipped.append(f"{layer.name}: a shift of {np.abs(shift).max():.3g} against a layer of size {size:.3g}")
            continue
        shifts[layer.name] = shift
    return Correction(shifts, tuple(skipped))


def shift_biases(quantized: ModelProto, shifts: Shifts) -> ModelProto:
    """A copy whose int32 biases hold the shifts, rounded to each bias's own scale; unknown layers are left out."""
    result = ModelProto()
    result.CopyFrom(quantized)
    tensors = {i.name: i for i in result.graph.initializer}
    limits = np.iinfo(np.int32)
    for name, bias in _biases(result).items():
        if name in shifts:
            values = np.clip(np.rint((bias.values + shifts[name]) / bias.scale), limits.min, limits.max)
            tensors[bias.tensor].CopyFrom(numpy_helper.from_array(values.astype(np.int32), bias.tensor))
    return result


@dataclass(frozen=True)
class _Bias:
    tensor: str
    values: NDArray[np.float64]
    scale: NDArray[np.float64]


def _biases(quantized: ModelProto) -> dict[str, _Bias]:
    """The dequantized int32 biases that only one layer reads, by that layer's name."""
    graph = quantized.graph
    tensors = {i.name: i for i in graph.initializer}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    made: dict[str, NodeProto] = {n.output[0]: n for n in graph.node if n.op_type == "DequantizeLinear"}
    found = {}
    for node in graph.node:
        source = made.get(node.input[2]) if node.op_type in ("Conv", "Gemm") and len(node.input) > 2 else None
        tensor = tensors.get(source.input[0]) if source else None
        if source is None or tensor is None or tensor.data_type != TensorProto.INT32:
            continue
        if readers[source.output[0]] == 1 and readers[tensor.name] == 1:
            scale = numpy_helper.to_array(tensors[source.input[1]]).astype(np.float64)
            found[node.name] = _Bias(tensor.name, numpy_helper.to_array(tensor) * scale, scale)
    return found
