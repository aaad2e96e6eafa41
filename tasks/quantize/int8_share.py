"""How much of a model really became int8 (or int4, or fp16)."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ModelProto, NodeProto, TensorProto

from tasks.onnx_models.onnx_cost import Shapes, layer_macs
from tasks.quantize.prepared_graph import LAYERS, layer_label, quantizable


@dataclass(frozen=True)
class Int8Share:
    """``quantized`` of ``quantizable`` layers (convolutions and products with constant weights), ``share`` of their
    multiply-accumulates (None where a shape is not known), and the layers left: ``Conv stem.weight [8, 3, 3, 3]``."""

    quantized: int
    quantizable: int
    share: float | None
    fp32_layers: tuple[str, ...]


def int8_share(prepared: ModelProto, quantized: ModelProto, shapes: Shapes) -> Int8Share:
    """Compare a prepared graph with what a quantizer made of it; nodes are told apart by name."""
    layers = quantizable(prepared)
    left = {node.name.removesuffix("_MatMul") for node in quantizable_in_float(quantized)}
    floats = [node for node in layers if node.name in left]
    macs = layer_macs(prepared, shapes)
    known = [macs[node.output[0]] for node in layers]
    share = None
    if None not in known:
        total = sum(m or 0 for m in known)
        share = 1.0 - sum(macs[n.output[0]] or 0 for n in floats) / total if total else 0.0
    names = tuple(layer_label(prepared, node) for node in floats)
    return Int8Share(len(layers) - len(floats), len(layers), share, names)


def quantizable_in_float(model: ModelProto) -> list[NodeProto]:
    """Layers whose weight is no dequantized constant, nor one in fp16."""
    small = {i.name for i in model.graph.initializer if i.data_type in (TensorProto.INT8, TensorProto.FLOAT16)}
    small |= {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    small |= {n.output[0] for n in model.graph.node if n.op_type == "Cast" and n.input[0] in small}
    small |= {n.output[0] for n in model.graph.node if n.op_type == "Mul" and n.input[0] in small}
    return [n for n in model.graph.node if n.op_type in LAYERS and n.input[1] not in small]
