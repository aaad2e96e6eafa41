"""A graph ready for the quantizer: constants folded, BatchNorm in the convolutions, every node with a name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from tasks.quantize.pooled_means import name_means

_INT8_OPERATORS = {"QuantizeLinear", "DequantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul"}
LAYERS = ("Conv", "Gemm", "MatMul")
OLDEST_OPSET = 13
"""The first with a scale per channel in QuantizeLinear."""


def prepare(file: bytes, folder: Path) -> ModelProto:
    """Optimise with ONNX Runtime's basic level, which keeps to standard operators.

    The shapes of intermediate tensors are dropped: those that exporters leave are stale after folding, and the
    quantizer infers them again. What was fp16 is fp32, as ONNX Runtime computes it on CPUs.
    """
    model = onnx.load_from_string(file)
    del model.graph.value_info[:]
    opset = opset_of(model)
    if 0 < opset < OLDEST_OPSET:
        model = onnx.version_converter.convert_version(model, OLDEST_OPSET)
    written = folder / "optimised.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(written)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    model = onnx.load_model(written)
    del model.graph.value_info[:]
    _widen_half_constants(model)
    name_means(model)
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
    add_pre_process_metadata(model)
    return model


def _widen_half_constants(model: ModelProto) -> None:
    """Constants in fp16 that ONNX Runtime casts to fp32 each time become fp32 ones: weights that can be quantized."""
    half = {i.name: i for i in model.graph.initializer if i.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16)}
    casts = [
        node
        for node in model.graph.node
        if node.op_type == "Cast" and node.input[0] in half and node.attribute[0].i == TensorProto.FLOAT
    ]
    for cast in casts:
        wide = numpy_helper.to_array(half[cast.input[0]]).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(wide, cast.output[0]))
        model.graph.node.remove(cast)
    used = {name for node in model.graph.node for name in node.input}
    for name in half.keys() - used:
        model.graph.initializer.remove(half[name])


def quantizable(model: ModelProto) -> list[NodeProto]:
    """Convolutions and matrix products with constant weights: where the work and the bytes are."""
    constants = {i.name for i in model.graph.initializer}
    return [
        node for node in model.graph.node if node.op_type in LAYERS and node.domain == "" and node.input[1] in constants
    ]


def opset_of(model: ModelProto) -> int:
    """Version of the standard operators; 0 where the model names none."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def layer_label(model: ModelProto, node: NodeProto) -> str:
    """A layer with a constant weight, for people: ``Conv stem.weight [8, 3, 3, 3]``."""
    shape = next(list(i.dims) for i in model.graph.initializer if i.name == node.input[1])
    return f"{node.op_type} {node.input[1]} {shape}"


def why_not(model: ModelProto, method: str) -> str:
    """Why the method would give nothing for this prepared graph; '' if it gives something."""
    done = sorted({n.op_type for n in model.graph.node if n.op_type in _INT8_OPERATORS})
    if done:
        return f"the file is quantized already ({', '.join(done)})"
    layers = quantizable(model)
    if not layers:
        return "the graph has no Conv, Gemm or MatMul with constant weights"
    if method == "dynamic" and all(node.op_type == "Conv" for node in layers):
        return "the graph has no Gemm or MatMul with constant weights, and convolutions are slower in dynamic int8"
    if method == "weights4" and all(node.op_type == "Conv" for node in layers):
        return "the graph has no Gemm or MatMul with constant weights, and int4 is for those only: use weights8"
    if method == "bf16":
        return (
            f"ONNX Runtime {onnxruntime.__version__} has no bfloat16 Conv, Gemm or MatMul on CPUs, so such a file "
            "could not be checked here: use fp16"
        )
    return ""
