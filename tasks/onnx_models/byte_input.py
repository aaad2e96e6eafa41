"""Bytes that are int8 activations already: preprocessing which quantization undoes is left out.

An image of bytes x is scaled, (x / 64 - 2), and then quantized with scale 1/64 and zero point 128: to x. Where that is
so for each of the 256 values, the first layer can read the bytes: its answers are the same bits, and up to four
operators less are run over the largest tensor of many a small network.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Array = NDArray[Any]
_BYTES = np.arange(256, dtype=np.uint8)
_ARITHMETIC = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}


def fold_byte_inputs(model: ModelProto) -> int:
    """Let what reads the quantized preprocessing of a UINT8 input read the input, in place; how often that was done.

    Only where the preprocessing casts, adds, subtracts, multiplies and divides by one number, and quantizing its result
    gives back every byte. Nodes that nobody reads any more are left for :func:`tasks.onnx_models.onnx_graph.strip`.
    """
    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    inputs = {v.name for v in graph.input if v.type.tensor_type.elem_type == TensorProto.UINT8}
    outputs, read = {v.name for v in graph.output}, {name for node in graph.node for name in node.input}
    replaced: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or node.output[0] in outputs or node.output[0] not in read:
            continue
        found = _preprocessed(node.input[0], makers, constants, inputs - constants.keys())
        if found is not None and _gives_back_bytes(found[1], node, constants):
            replaced[node.output[0]] = found[0]
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in replaced:
                node.input[position] = replaced[name]
    return len(replaced)


def spell_out_byte_inputs(model: ModelProto) -> ModelProto:
    """The same model with what :func:`fold_byte_inputs` left out spelled out again, as training wants it."""
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    constants = {i.name: i for i in graph.initializer}
    inputs = {v.name for v in graph.input if v.type.tensor_type.elem_type == TensorProto.UINT8} - constants.keys()
    for number, node in enumerate(n for n in list(graph.node) if n.op_type == "DequantizeLinear"):
        name = node.input[0]
        if name not in inputs or node.input[1] not in constants:
            continue
        zero = numpy_helper.to_array(constants[node.input[2]]) if len(node.input) > 2 else np.zeros((), np.uint8)
        shifted, scaled, quantized = (f"{name}/{what}{number}" for what in ("shifted", "scaled", "quantized"))
        offset = numpy_helper.from_array(zero.astype(np.float32), f"{name}/offset{number}")
        zero_point = numpy_helper.from_array(zero, f"{name}/zero{number}")
        graph.initializer.extend([offset, zero_point])
        chain = [
            helper.make_node("Cast", [name], [f"{shifted}/float"], to=TensorProto.FLOAT),
            helper.make_node("Sub", [f"{shifted}/float", offset.name], [shifted]),
            helper.make_node("Mul", [shifted, node.input[1]], [scaled]),
            helper.make_node("QuantizeLinear", [scaled, node.input[1], zero_point.name], [quantized]),
        ]
        node.input[0] = quantized
        for step in reversed(chain):
            graph.node.insert(0, step)
    return copy


def _preprocessed(
    name: str, makers: dict[str, NodeProto], constants: dict[str, TensorProto], inputs: set[str]
) -> tuple[str, Array] | None:
    """The UINT8 input behind a tensor, and what the tensor holds for each byte (float32 [256])."""
    chain: list[tuple[NodeProto, int]] = []
    while name not in inputs:
        node = makers.get(name)
        if node is None or node.domain:
            return None
        computed = [position for position, source in enumerate(node.input) if source not in constants]
        if len(computed) != 1 or not (node.op_type == "Cast" or node.op_type in _ARITHMETIC):
            return None
        chain.append((node, computed[0]))
        name = node.input[computed[0]]
    values: Array = _BYTES
    for node, position in reversed(chain):
        if node.op_type == "Cast":
            if helper.get_node_attr_value(node, "to") != TensorProto.FLOAT:
                return None
            values = values.astype(np.float32)
            continue
        other = numpy_helper.to_array(constants[node.input[1 - position]])
        if other.size != 1 or other.dtype != np.float32 or values.dtype != np.float32:
            return None
        pair = (values, other.reshape(())) if position == 0 else (other.reshape(()), values)
        with np.errstate(all="ignore"):
            values = _ARITHMETIC[node.op_type](*pair)
    return name, values


def _gives_back_bytes(values: Array, node: NodeProto, constants: dict[str, TensorProto]) -> bool:
    scale = constants.get(node.input[1])
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    if scale is None or values.dtype != np.float32 or (len(node.input) > 2 and zero is None):
        return False
    step = numpy_helper.to_array(scale)
    offset = np.zeros((), np.uint8) if zero is None else numpy_helper.to_array(zero)
    if step.size != 1 or offset.size != 1 or offset.dtype != np.uint8 or not np.isfinite(values).all():
        return False
    quantized = np.rint(values / step.reshape(())) + offset.reshape(()).astype(np.float32)
    return bool(np.array_equal(np.clip(quantized, 0, 255), _BYTES))
