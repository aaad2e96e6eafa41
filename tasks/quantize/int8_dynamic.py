"""Dynamic int8: weights quantized ahead, activations at run time, each row by its own largest magnitude.

A row is what a product sums over: an image's features, a token's vector. ONNX Runtime's own dynamic quantization takes
one scale from the whole tensor, so that one long row costs all others their precision, and a stranger's request changes
an answer. With a scale per row neither can be, integers are summed exactly, and a row's answer depends on nothing but
the row. Written in standard operators:

    m = Max(ReduceMax(Abs(x), -1), tiny);  q = Cast(x * (127 / m) + 128.5)      once for each x, whoever multiplies it
    y = Cast(MatMulInteger(q, W, 128)) * w_scale * (m / 127)                    then the bias as before

Activations are unsigned with zero point 128: ONNX Runtime's kernels for signed ones are several times slower on x86
(1.31.1). What is never negative, as after ReLU, has zero point 0, 255 in place of 127, and needs no Abs. Source:
per-token activation and per-channel weight scales, Yao et al., ZeroQuant (2022), section 4.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tasks.quantize.prepared_graph import opset_of, quantizable
from tasks.quantize.products import as_matmul, is_product

Array = NDArray[Any]
Rounding = Callable[[str, Array, int], tuple[Array, Array]]
"""By a weight's name, its matrix [K, N] and the largest code: int8 codes [K, N], and float32 scales [N]."""
_MOST = {True: 63, False: 127}
"""Largest weight: pairs of products are summed in 16 bits where the CPU has no VNNI."""
_TINY = 1e-30
"""In place of the magnitude of a row of zeros."""
_AXES_INPUT_OPSET = 18
"""The first with the axes of ReduceMax as an input."""
_SHARED = "rows_int8"
"""Begins the names of what all layers use."""
_POSITIVE = {"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Exp", "Abs", "Sqrt"}
"""Operators that answer nothing negative,"""
_KEPT_POSITIVE = {
    *("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Slice", "Gather", "Concat", "Add", "Mul"),
    *("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "ReduceMean", "ReduceMax", "ReduceSum"),
}
"""and those that do so where no float that they are given is negative."""


def quantize_dynamically(
    model: ModelProto,
    *,
    per_channel: bool,
    reduce_range: bool,
    excluded: frozenset[str] = frozenset(),
    rounded: Rounding | None = None,
) -> ModelProto:
    """The model with its MatMul and Gemm nodes in int8, but for those whose names are excluded.

    Never Conv: ONNX Runtime has no u8 x s8 kernel for ConvInteger and refuses to load it, and the other one is many
    times slower than fp32 (microsoft/onnxruntime#15888, #12854). Gemm becomes MatMul and Add on the way.

    Args:
        model: prepared; not changed.
        per_channel: a scale for each column of a weight instead of one for all.
        reduce_range: weights of 7 bits, for CPUs whose 16-bit sums saturate.
        rounded: rounds a weight; by default each number to the nearest.
    """
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    weights = {i.name: i for i in graph.initializer}
    chosen = {node.name for node in quantizable(result)} - excluded
    rows = _Rows(opset_of(result), _never_negative(graph))
    nodes, made = list[NodeProto](), list[TensorProto]()
    for original in graph.node:
        node = NodeProto.FromString(original.SerializeToString())
        weight = numpy_helper.to_array(weights[node.input[1]]).astype(np.float32) if node.name in chosen else None
        if weight is None or not is_product(node, weight):
            nodes.append(node)
            continue
        product, tail, matrix = as_matmul(node, weight)
        most = _MOST[reduce_range]
        if rounded is None:
            codes, scale = _round(matrix, most=most, per_channel=per_channel)
        else:
            codes, scale = rounded(node.input[1], matrix, most)
        nodes += [*rows.quantize(product.input[0]), *rows.product(product), *tail]
        made += [
            numpy_helper.from_array(codes, f"{product.name}_int8"),
            numpy_helper.from_array(scale, f"{product.name}_scale"),
        ]
    if made:
        graph.initializer.extend([*made, *_constants()])
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph)
    return result


class _Rows:
    """Quantizes tensors row by row, each tensor once, and multiplies them.

    Args:
        opset: of the graph.
        positive: names of tensors that hold nothing negative.
    """

    def __init__(self, opset: int, positive: frozenset[str]) -> None:
        self._opset, self._positive = opset, positive
        self._done = set[str]()

    def quantize(self, name: str) -> list[NodeProto]:
        """What quantizes the tensor, if that is not in the graph yet."""
        if name in self._done:
            return []
        self._done.add(name)
        p, positive = f"{name}_{_SHARED}", name in self._positive
        span = "255" if positive else "127"
        axes = [f"{_SHARED}_axis"] if self._opset >= _AXES_INPUT_OPSET else []
        reducing: dict[str, Any] = {"keepdims": 1} | ({} if axes else {"axes": [-1]})
        steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
            ("ReduceMax", [name if positive else f"{p}_abs", *axes], "most", reducing),
            ("Max", [f"{p}_most", f"{_SHARED}_tiny"], "magnitude", {}),
            ("Div", [f"{_SHARED}_{span}", f"{p}_magnitude"], "factor", {}),
            ("Mul", [name, f"{p}_factor"], "scaled", {}),
            ("Add", [f"{p}_scaled", f"{_SHARED}_{'half' if positive else 'middle'}"], "moved", {}),
            ("Cast", [f"{p}_moved"], "codes", {"to": TensorProto.UINT8}),
            ("Mul", [f"{p}_magnitude", f"{_SHARED}_1/{span}"], "scale", {}),
        ]
        if not positive:
            steps.insert(0, ("Abs", [name], "abs", {}))
        return [
            helper.make_node(operator, inputs, [f"{p}_{output}"], name=f"{p}_{output}", **attributes)
            for operator, inputs, output, attributes in steps
        ]

    def product(self, node: NodeProto) -> list[NodeProto]:
        """The product of its quantized input, in integers, and in float32 again."""
        name, p, (output,) = node.name, f"{node.input[0]}_{_SHARED}", node.output
        inputs = [f"{p}_codes", f"{name}_int8"]
        if node.input[0] not in self._positive:
            inputs.append(f"{_SHARED}_zero")
        return [
            helper.make_node("MatMulInteger", inputs, [f"{name}_whole"], name=name),
            helper.make_node("Cast", [f"{name}_whole"], [f"{name}_float"], name=f"{name}_cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}_float", f"{name}_scale"], [f"{name}_rows"], name=f"{name}_by_column"),
            helper.make_node("Mul", [f"{name}_rows", f"{p}_scale"], [output], name=f"{name}_by_row"),
        ]


def _constants() -> list[TensorProto]:
    """What quantizing refers to."""
    floats = {"tiny": _TINY, "127": 127, "255": 255, "1/127": 1 / 127, "1/255": 1 / 255}
    floats |= {"half": 0.5, "middle": 128.5}  # Cast drops the fraction
    values: dict[str, Array] = {name: np.array(value, np.float32) for name, value in floats.items()}
    values |= {"zero": np.array(128, np.uint8), "axis": np.array([-1], np.int64)}
    return [numpy_helper.from_array(value, f"{_SHARED}_{name}") for name, value in values.items()]


def _never_negative(graph: GraphProto) -> frozenset[str]:
    """Tensors that can hold nothing negative, as far as the operators before them tell."""
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer if i.data_type == TensorProto.FLOAT}
    others = {i.name for i in graph.initializer} - constants.keys()  # shapes and axes
    found = {name for name, value in constants.items() if value.size and value.min() >= 0}
    for node in graph.node:
        kept = node.op_type in _KEPT_POSITIVE and all(name in found or name in others for name in node.input if name)
        if node.domain == "" and (kept or node.op_type in _POSITIVE):
            found.update(node.output)
    return frozenset(found)


def _round(matrix: Array, *, most: int, per_channel: bool) -> tuple[Array, Array]:
    """int8 codes [K, N] and float32 scales, [N] or []."""
    magnitude = np.abs(matrix).max(axis=0 if per_channel else None, initial=0.0)
    scale = np.where(magnitude > 0, magnitude / most, 1.0).astype(np.float32)
    return np.clip(np.rint(matrix / scale), -most, most).astype(np.int8), scale


def _drop_unused(graph: GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [TensorProto.FromString(i.SerializeToString()) for i in graph.initializer if i.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
