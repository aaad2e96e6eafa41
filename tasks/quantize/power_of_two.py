"""Scales that are powers of two: going from sums back to bytes is a shift then, which hardware has for nothing.

With any other scale ONNX Runtime multiplies by a float and rounds, and no multiplication of whole numbers gives the
same for every sum. A shift does. Jacob et al. 2018 (arXiv:1712.05877, section 2) describe scales in general; FPGA and
NPU tools ask for powers of two (Jain et al. 2020, arXiv:1903.08066).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

Array = NDArray[Any]
_LAYERS = ("Conv", "Gemm", "MatMul")


def snap_scales(quantized: ModelProto, prepared: ModelProto, *, most: int) -> ModelProto:
    """The QDQ model with each scale raised to the next power of two; weights are rounded again from floats.

    Args:
        quantized: as :func:`tasks.quantize.int8_static.quantize_statically` makes it; its names are those of
            ``prepared`` with ``_quantized`` added.
        prepared: the fp32 model that it was made of.
        most: largest magnitude of a weight: 64 where sums of two products saturate, else 127.

    Returns:
        A copy. Layers whose weight is not in the fp32 model by that name keep their scales.
    """
    snapped = ModelProto()
    snapped.CopyFrom(quantized)
    graph = snapped.graph
    old = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    floats = {i.name: numpy_helper.to_array(i) for i in prepared.graph.initializer}
    new: dict[str, Array] = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[1] in old:
            scale, zero = old[node.input[1]], old[node.input[2]]
            raised = power_of_two(scale)
            limits = np.iinfo(zero.dtype)
            at = np.clip(np.rint(zero.astype(np.float64) * scale / raised), limits.min, limits.max)
            new |= {node.input[1]: raised, node.input[2]: at.astype(zero.dtype)}
    sources = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    made = {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    for node in sources.values():  # some have a scale of their own: that of their QuantizeLinear, once per channel
        its_own = made[node.input[0]].input[1:] if node.input[0] in made else ()
        for name, whose in zip(node.input[1:], its_own, strict=False):
            new[name] = np.broadcast_to(new.get(whose, old[whose]).reshape(-1), old[name].reshape(-1).shape)
    for node in graph.node:
        parts = [sources.get(name) for name in node.input]
        if node.op_type in _LAYERS and parts[0] is not None and parts[1] is not None:
            _round_again(parts, old, floats, new, most)
    for tensor in graph.initializer:
        if tensor.name in new:
            value = new[tensor.name].astype(old[tensor.name].dtype).reshape(old[tensor.name].shape)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return snapped


def power_of_two(scale: Array) -> Array:
    """The smallest power of two that is not below each scale; float32."""
    mantissa, exponent = np.frexp(np.asarray(scale, np.float64))
    raised: Array = np.ldexp(1.0, exponent - (mantissa == 0.5)).astype(np.float32)
    return raised


def _round_again(
    parts: list[NodeProto | None], old: dict[str, Array], floats: dict[str, Array], new: dict[str, Array], most: int
) -> None:
    """A layer's weight and bias with the new scales."""
    source, weight, *rest = parts
    assert source is not None and weight is not None
    exact = floats.get(weight.input[0].removesuffix("_quantized"))
    if exact is None or weight.input[0] not in old:
        return
    raised = power_of_two(old[weight.input[1]])
    axis = next((helper.get_attribute_value(a) for a in weight.attribute if a.name == "axis"), 1)
    shape = [-1 if n == axis % exact.ndim else 1 for n in range(exact.ndim)] if raised.size > 1 else [1] * exact.ndim
    new[weight.input[1]] = raised
    new[weight.input[0]] = np.clip(np.rint(exact / raised.reshape(shape)), -most, most)
    for bias in (part for part in rest if part is not None):
        if bias.input[0] in old:  # as it is, with all that was corrected
            step = new.get(source.input[1], old[source.input[1]]).reshape(-1)[:1] * raised.reshape(-1)
            number = old[bias.input[0]].reshape(-1).astype(np.float64) * old[bias.input[1]].reshape(-1)
            new[bias.input[1]] = np.broadcast_to(step, old[bias.input[1]].reshape(-1).shape)
            new[bias.input[0]] = np.rint(number / step)
