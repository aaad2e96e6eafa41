"""Static int8: weights and activations quantized, ranges from calibration data, written as Q and DQ nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from tasks.quantize.calibration import RowReader
from tasks.quantize.float_layers import keep_in_float
from tasks.quantize.observed_ranges import RANGES, write_ranges
from tasks.quantize.prepared_graph import quantizable

Activations = Literal["uint8", "int8", "symmetric"]
"""``uint8`` for x86, ``int8`` for ARM; ``symmetric``: int8 around 0, which has a bit less after a ReLU."""
_PRODUCTS = ["Gemm", "MatMul"]
# Between convolutions the activations should stay int8: operators that have int8 kernels or just move values.
_AROUND_CONVOLUTIONS = [
    "Conv", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Add", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool",
    "Pad", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Resize",
]  # fmt: skip


def quantize_statically(
    model: ModelProto,
    reader: RowReader,
    folder: Path,
    *,
    method: str,
    percentile: float,
    per_channel: bool,
    reduce_range: bool,
    activations: Activations,
    excluded: frozenset[str] = frozenset(),
    ranges: Path | None = None,
) -> ModelProto:
    """The model in QDQ form.

    Args:
        model: prepared by :func:`tasks.quantize.prepared_graph.prepare`.
        method: minmax, percentile (of ``percentile`` percent) or entropy.
        reduce_range: weights in 7 bits, for CPUs whose 16-bit sums saturate.
        activations: their type; symmetric ones have zero points of 0.
        excluded: names of nodes that stay in fp32.
        ranges: a file for the ranges of the activations: written if it is not there, else read instead of calibrating.
            One per model and method.
    """
    # The quantizer's own MatMulConstBOnly holds for its other format only. Products of activations (attention scores)
    # cost accuracy in int8 and ran 1.5 times slower; nor does a MatMul gain from rounding what is added to a bias next.
    constant = {node.name for node in quantizable(model)}
    left = [n.name for n in model.graph.node if n.op_type in _PRODUCTS and n.name not in constant]
    options: dict[str, Any] = {
        "OpTypesToExcludeOutputQuantization": ["MatMul"],
        "ActivationSymmetric": activations == "symmetric",
    }
    read, written = folder / "prepared.onnx", folder / "static.onnx"
    onnx.save_model(model, read)  # given the model itself, the quantizer would move its weights to a file
    operators = _PRODUCTS + (_AROUND_CONVOLUTIONS if _is_convolutional(model) else ["Conv", "Relu", "Clip"])
    if ranges is None or not ranges.exists():
        ranges = ranges or folder / "ranges.json"
        write_ranges(read, operators, reader, ranges, method=method, percentile=percentile)
    quantize_static(
        read,
        written,
        None,  # no rows: the ranges are there
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=operators,
        per_channel=per_channel,
        reduce_range=reduce_range,
        activation_type=QuantType.QUInt8 if activations == "uint8" else QuantType.QInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[*left, *sorted(excluded)],
        calibrate_method=RANGES[method],
        extra_options=options,
        calibration_cache_path=ranges,
    )
    quantized = onnx.load_model(written)
    _float_outputs(quantized)
    _drop_zero_points(quantized)
    keep_in_float(quantized)
    return quantized


def _is_convolutional(model: ModelProto) -> bool:
    """Whether activations stay int8 from layer to layer: not where MatMuls, which answer floats, are most layers.

    One convolution cuts a vision transformer's image into patches; adds and norms follow. To round what lies between
    makes it slower and less exact (0.79 instead of 0.72 ms, an error of 1.9 instead of 1.1 %, in turns on a busy Xeon).
    """
    kinds = [node.op_type for node in quantizable(model)]
    return kinds.count("Conv") > kinds.count("MatMul")


def _float_outputs(model: ModelProto) -> None:
    """Let a final Gemm answer in fp32, as its int8 kernel can: rounding logits to 8 bits only loses."""
    graph = model.graph
    makers: dict[str, NodeProto] = {name: node for node in graph.node for name in node.output}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    for output in graph.output:
        dequantize = makers.get(output.name)
        if dequantize is None or dequantize.op_type != "DequantizeLinear" or readers.get(output.name):
            continue
        quantize = makers.get(dequantize.input[0])
        if quantize is None or quantize.op_type != "QuantizeLinear" or readers[quantize.output[0]] > 1:
            continue
        maker = makers.get(quantize.input[0])
        if maker is None or maker.op_type not in _PRODUCTS or readers[maker.output[0]] > 1:
            continue
        graph.node.remove(dequantize)
        graph.node.remove(quantize)
        maker.output[0] = output.name


def _drop_zero_points(model: ModelProto) -> None:
    """Weights and biases are symmetric: their zero points are zeros, which is the default of DequantizeLinear.

    ONNX Runtime 1.31 joins Gemm and MatMul into their int8 kernels only where the weight's zero point is written out.
    """
    tensors = {i.name: i for i in model.graph.initializer}
    products = {name for node in model.graph.node if node.op_type in _PRODUCTS for name in node.input[:2]}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or len(node.input) < 3 or node.output[0] in products:
            continue
        data, zero = tensors.get(node.input[0]), tensors.get(node.input[2])
        if data is None or zero is None or data.data_type not in (TensorProto.INT8, TensorProto.INT32):
            continue
        if not np.any(numpy_helper.to_array(zero)):
            del node.input[2]
