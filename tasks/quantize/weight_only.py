"""Weight-only forms: small files, activations in fp32 as far as the format says.

Large products are written as DequantizeLinear and MatMul, which ONNX Runtime joins into one MatMulNBits kernel when it
loads the file; that kernel may round activations to int8 blocks. Weights of convolutions and of small products are
written as Cast and Mul, which it folds into fp32 when it loads the file: they are small on disk only, and as fast as
fp32. A DequantizeLinear there would run at every call (a 64-channel 3x3 convolution of 16x16: 0.13 ms against 0.09 ms,
ONNX Runtime 1.31.1, one thread).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tasks.quantize.prepared_graph import opset_of, quantizable
from tasks.quantize.products import as_matmul, is_product

Array = NDArray[Any]

BLOCK = 32
"""Weights along K that share a scale in int4."""
_BLOCKED_OPSET = 21
"""The first with int4 and a scale per block in DequantizeLinear."""
FOLDED = 1 << 17
"""Weights of a product up to which int8 ones are folded: 512 KiB in fp32, what an L2 cache holds. Measured at batch 1
on an EPYC with AVX2 (ONNX Runtime 1.31.1, one thread): 384x256 weights take 31 us as Gemm and 38 us as MatMulNBits,
768x256 weights 27 and 24 us; at batch 16 Gemm is always faster. So products of sequences, which have a row for each
step, are folded whatever their size: MiniLM-L6 took 34 ms for 64 tokens, and 21 ms in fp32."""
_CLIPS = np.linspace(0.75, 1.0, 6)


def quantize_weights(
    model: ModelProto, *, bits: int, excluded: frozenset[str] = frozenset(), folded: int = FOLDED
) -> ModelProto:
    """The model with int8 weights, or with int4 ones in MatMul and Gemm and int8 ones in Conv.

    int8: symmetric, a scale per output channel. int4: symmetric, a scale per block of 32 along K; of six clipped
    ranges each block takes the one with the least squared error. Gemm becomes MatMul and a Sub of its negated bias.

    Args:
        model: prepared; not changed.
        bits: 8 or 4.
        excluded: names of nodes that stay as they are.
        folded: int8 products of at most this number of weights run in fp32, as convolutions do, and those of sequences.
    """
    result = ModelProto()
    result.CopyFrom(model)
    if bits == 4:
        _raise_opset(result)
    graph = result.graph
    tensors = {i.name: i for i in graph.initializer}
    chosen = {node.name for node in quantizable(result)} - excluded
    sequences = _sequences(result)
    nodes: list[NodeProto] = []
    for original in graph.node:
        node = NodeProto.FromString(original.SerializeToString())
        if node.name not in chosen:
            nodes.append(node)
            continue
        weight = numpy_helper.to_array(tensors[node.input[1]]).astype(np.float32)
        large = weight.size > folded and node.input[0] not in sequences
        if is_product(node, weight) and (bits == 4 or large):
            product, tail, matrix = as_matmul(node, weight)
            before, made = _products(product, matrix, bits)
            nodes += [*before, product, *tail]
        else:
            before, made = _folded(node, weight)
            nodes += [*before, node]
        graph.initializer.extend(made)
    _subtract_biases(nodes, graph)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input} | {v.name for v in graph.output}
    kept = [TensorProto.FromString(i.SerializeToString()) for i in graph.initializer if i.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return result


def _sequences(model: ModelProto) -> set[str]:
    """Tensors with more than a row for each sample, [N, steps, features] and the like."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = [*graph.input, *graph.value_info]
    return {v.name for v in values if len(v.type.tensor_type.shape.dim) > 2}


def runs_as_float(model: ModelProto) -> bool:
    """Whether all int8 weights are folded into fp32 when the model is loaded: then every CPU answers the same."""
    return not any(node.op_type in ("DequantizeLinear", "MatMulNBits") for node in model.graph.node)


def round_channels(weight: Array, axis: int) -> tuple[Array, Array]:
    """int8 weights and their scales, float32, one per index of ``axis``, kept as dimensions of 1."""
    others = tuple(a for a in range(weight.ndim) if a != axis)
    scale = np.abs(weight).max(axis=others, keepdims=True) / 127
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale


def round_blocks(weight: Array, block: int = BLOCK) -> tuple[Array, Array]:
    """Integers -8 to 7 [K, N] and float32 scales [K / block rounded up, N] of a matrix [K, N]."""
    rows, columns = weight.shape
    blocks = -(-rows // block)
    padded = np.zeros((blocks * block, columns), np.float32)
    padded[:rows] = weight
    split = padded.reshape(blocks, block, columns)
    # The value of largest magnitude meets -8, the longer end of the range, whatever its sign.
    place = np.abs(split).argmax(axis=1)[:, None]
    longest = np.take_along_axis(split, place, axis=1) / -8
    best = np.full((blocks, 1, columns), np.inf)
    numbers, scales = np.zeros(split.shape, np.int8), np.ones((blocks, 1, columns), np.float32)
    for clip in _CLIPS:
        scale = np.where(longest == 0, 1.0, longest * clip).astype(np.float32)
        rounded = np.clip(np.rint(split / scale), -8, 7)
        error = np.square(rounded * scale - split).sum(axis=1, keepdims=True)
        better = error < best
        best = np.where(better, error, best)
        scales = np.where(better, scale, scales)
        numbers = np.where(better, rounded, numbers).astype(np.int8)
    return numbers.reshape(-1, columns)[:rows], scales[:, 0]


def _subtract_biases(nodes: list[NodeProto], graph: GraphProto) -> None:
    """Write x + b after a quantized product as x - (-b).

    ONNX Runtime joins MatMul and Add into Gemm before it looks for MatMulNBits, and then has to dequantize the whole
    weight at every call: 6.4 ms instead of 0.03 ms for layers of 192, 1024 and 1024 inputs (1.31.1, one thread).
    """
    tensors = {i.name: numpy_helper.to_array(i) for i in graph.initializer if len(i.dims) == 1}
    dequantized = {n.output[0] for n in nodes if n.op_type == "DequantizeLinear"}
    products = {n.output[0] for n in nodes if n.op_type == "MatMul" and n.input[1] in dequantized}
    for node in nodes:
        if node.op_type != "Add" or node.domain != "":
            continue
        product = next((name for name in node.input if name in products), None)
        bias = next((name for name in node.input if name in tensors), None)
        if product and bias:
            name = f"{node.name}_negated"
            graph.initializer.append(numpy_helper.from_array(-tensors[bias], name))
            node.op_type = "Sub"
            node.input[:] = [product, name]


def _products(node: NodeProto, matrix: Array, bits: int) -> tuple[list[NodeProto], list[TensorProto]]:
    numbers, scale, name = f"{node.name}_int{bits}", f"{node.name}_scale", f"{node.name}_weight"
    if bits == 4:
        values, scales = round_blocks(matrix)
        packed = helper.make_tensor(numbers, TensorProto.INT4, values.shape, values.reshape(-1).tolist())
        tensors = [packed, numpy_helper.from_array(scales, scale)]
        wide = helper.make_node("DequantizeLinear", [numbers, scale], [name], name=name, axis=0, block_size=BLOCK)
    else:
        values, scales = round_channels(matrix, 1)
        tensors = [numpy_helper.from_array(values, numbers), numpy_helper.from_array(scales[0], scale)]
        wide = helper.make_node("DequantizeLinear", [numbers, scale], [name], name=name, axis=1)
    node.input[1] = name
    return [wide], tensors


def _folded(node: NodeProto, weight: Array) -> tuple[list[NodeProto], list[TensorProto]]:
    numbers, scale, name = f"{node.name}_int8", f"{node.name}_scale", f"{node.name}_weight"
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    values, scales = round_channels(weight, 0 if node.op_type == "Conv" or transposed else weight.ndim - 1)
    wide = [
        helper.make_node("Cast", [numbers], [f"{name}_float"], name=f"{name}_cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}_float", scale], [name], name=name),
    ]
    node.input[1] = name
    return wide, [numpy_helper.from_array(values, numbers), numpy_helper.from_array(scales, scale)]


def _raise_opset(model: ModelProto) -> None:
    if opset_of(model) < _BLOCKED_OPSET:
        names = [node.name for node in model.graph.node]
        model.CopyFrom(onnx.version_converter.convert_version(model, _BLOCKED_OPSET))
        if len(names) == len(model.graph.node):  # the converter may drop names, by which layers are told apart
            for node, name in zip(model.graph.node, names, strict=True):
                node.name = name
    model.ir_version = max(model.ir_version, 10)
