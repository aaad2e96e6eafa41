"""Dynamic int8: weights quantized, activations at run time. For matrix products only."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
from onnx import ModelProto
from onnxruntime.quantization import QuantType, quantize_dynamic


def quantize_dynamically(
    model: ModelProto, folder: Path, *, per_channel: bool, reduce_range: bool, excluded: frozenset[str] = frozenset()
) -> ModelProto:
    """The model with its MatMul and Gemm nodes in int8, but for those whose names are excluded.

    Never Conv: ONNX Runtime has no u8 x s8 kernel for ConvInteger and refuses to load it, and the other one is many
    times slower than fp32 (microsoft/onnxruntime#15888, #12854). Gemm becomes MatMul and Add on the way.
    """
    read, written = folder / "prepared.onnx", folder / "dynamic.onnx"
    onnx.save_model(_own_weights(model), read)  # given the model itself, the quantizer would move its weights to a file
    quantize_dynamic(
        read,
        written,
        op_types_to_quantize=["MatMul"],
        per_channel=per_channel,
        reduce_range=reduce_range,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[name + suffix for name in sorted(excluded) for suffix in ("", "_MatMul")],
        extra_options={"MatMulConstBOnly": True},
    )
    quantized = onnx.load_model(written)
    return quantized


def _own_weights(model: ModelProto) -> ModelProto:
    """The model with a weight of its own for each Gemm.

    The quantizer transposes a Gemm's weight in place, whoever else uses it: a layer called twice would get it back as
    it was, and an embedding tied to the last layer would look up columns.
    """
    users = Counter(name for node in model.graph.node for name in node.input)
    own = ModelProto()
    own.CopyFrom(model)
    weights = {i.name: i for i in model.graph.initializer}
    for node in own.graph.node:
        if node.op_type == "Gemm" and users[node.input[1]] > 1 and node.input[1] in weights:
            copy = own.graph.initializer.add()
            copy.CopyFrom(weights[node.input[1]])
            copy.name = node.input[1] = f"{node.input[1]}.{node.name}"
    return own
