"""What a decoder's products are asked, with its outliers moved into their weights: then int8 rows hold both.

Xiao et al. 2023, "SmoothQuant" (arXiv:2211.10438), equation 4 with a strength of 1/2: channel j of the inputs is
divided by s_j = sqrt(max |x_j| / max |w_j|), and row j of the weight multiplied by it. The division costs nothing: it
goes into the norm before the product, or, behind a gate, into the columns of the product that is gated. The function
stays.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from model_registry.decoder_form import DecoderForm
from tasks.quantize.decoder_weights import decoder_products
from tasks.quantize.product_inputs import watch_inputs

Array = NDArray[np.float64]

_NORM_WEIGHTS = {
    "LayerNormalization": 1,
    "SimplifiedLayerNormalization": 1,
    "SkipLayerNormalization": 2,
    "SkipSimplifiedLayerNormalization": 2,
}
"""Where a norm's weight is among its inputs; a bias follows it."""


def channel_magnitudes(
    model: ModelProto, form: DecoderForm, tokens: NDArray[np.int64]
) -> Mapping[str, NDArray[np.float32]]:
    """The largest magnitude of each channel [K] that a product is asked, by the name of its weight.

    Args:
        tokens: rows [N, length], run one by one.
    """
    found = dict[str, NDArray[np.float32]]()

    def widen(name: str, values: NDArray[np.float32]) -> None:
        most = np.abs(values).max(axis=0)
        found[name] = np.maximum(found[name], most) if name in found else most

    asked = watch_inputs(model, form, tokens, widen)
    return {weight: found[name] for weight, name in asked.items()}


def smoothed(model: ModelProto, magnitudes: Mapping[str, NDArray[np.float32]]) -> tuple[ModelProto, dict[str, Array]]:
    """The same function with smoother inputs, and by what each channel was divided [K], by the weight's name.

    Products that nothing scalable comes before keep their inputs: those behind attention, behind an activation
    without a gate, and the head.

    Args:
        model: in fp32; not changed. ``magnitudes``: as :func:`channel_magnitudes` gives them.
    """
    result = ModelProto()
    result.CopyFrom(model)
    nodes = {output: node for node in result.graph.node for output in node.output if output}
    readers: dict[str, list[NodeProto]] = {}
    for node in result.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    tensors = {i.name: i for i in result.graph.initializer}
    arrays, divisors = dict[str, Array](), dict[str, Array]()

    def array(name: str) -> Array:
        if name not in arrays:
            arrays[name] = numpy_helper.to_array(tensors[name]).astype(np.float64)
        return arrays[name]

    products = decoder_products(result)
    for name in sorted({node.input[0] for node in products.values()}):
        weights = [node.input[1] for node in readers[name] if node.op_type == "MatMul" and node.input[1] in products]
        before = _before(nodes, name)
        if before is None or len(weights) < len(readers[name]) or any(len(readers[w]) > 1 for w in (*weights, *before)):
            continue
        largest = np.max([np.abs(array(weight)).max(axis=1) for weight in weights], axis=0)
        divisor = _divisor(magnitudes[weights[0]].astype(np.float64), largest)
        for vector in before:  # [K], or [.., 2 K] of a gate's columns and those that are gated
            array(vector)[..., -len(divisor) :] /= divisor
        for weight in weights:
            array(weight)[:] *= divisor[:, None]
            divisors[weight] = divisor
    for name, value in arrays.items():
        tensors[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    return result, divisors


def _before(nodes: Mapping[str, NodeProto], name: str) -> list[str] | None:
    """The constants whose last channels are those of a tensor; None where nothing can be divided."""
    node = nodes.get(name)
    if node is None:
        return None
    place = _NORM_WEIGHTS.get(node.op_type)
    if place is not None:
        return [constant for constant in node.input[place : place + 2] if constant] if name == node.output[0] else None
    if node.op_type != "Mul":
        return None
    split = nodes.get(node.input[1])
    if split is None or split.op_type != "Split" or node.input[1] != split.output[1]:
        return None
    wide = nodes[split.input[0]]
    found = []
    if wide.op_type == "Add":
        found.append(wide.input[1])
        wide = nodes[wide.input[0]]
    return [*found, wide.input[1]] if wide.op_type == "MatMul" else None


def _divisor(magnitudes: Array, largest: Array) -> Array:
    """1 for channels that are never used."""
    usable = (magnitudes > 0) & (largest > 0)
    found = np.ones(len(magnitudes))
    found[usable] = np.sqrt(magnitudes[usable] / largest[usable])
    return found
