"""Sums that saturate: x86 without VNNI adds two u8 x s8 products in 16 bits and cuts off the rest (vpmaddubsw)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from tasks.quantize.prepared_graph import LAYERS

_LARGEST_ACTIVATION = 255
_LIMITS = np.iinfo(np.int16)


def saturating_product(activations: NDArray[np.uint8], weights: NDArray[np.int8]) -> NDArray[np.int32]:
    """A matrix product as AVX2 computes it: neighbours along K are added in int16, with saturation, then in int32.

    Args:
        activations: uint8 [rows, K].
        weights: int8 [K, N].

    Returns:
        int32 [rows, N]; equals the exact product where nothing saturates.
    """
    left, right = activations.astype(np.int32), weights.astype(np.int32)
    if left.shape[1] % 2:
        left, right = np.pad(left, ((0, 0), (0, 1))), np.pad(right, ((0, 1), (0, 0)))
    pairs = left[:, 0::2, None] * right[None, 0::2] + left[:, 1::2, None] * right[None, 1::2]
    sums: NDArray[np.int32] = np.clip(pairs, _LIMITS.min, _LIMITS.max).sum(axis=1, dtype=np.int32)
    return sums


def may_saturate(weights: NDArray[np.int8]) -> bool:
    """Whether some pair of weights of one output channel overflows 16 bits with the largest activations.

    Any pair counts, since kernels are free to reorder K. Weights of 7 bits (``reduce_range``) never do.

    Args:
        weights: int8 [channels, ...].
    """
    flat = np.sort(weights.reshape(len(weights), -1).astype(np.int64), axis=1)
    highest, lowest = flat[:, -2:].clip(min=0).sum(axis=1), flat[:, :2].clip(max=0).sum(axis=1)
    worst = _LARGEST_ACTIVATION * highest > _LIMITS.max
    return bool((worst | (_LARGEST_ACTIVATION * lowest < _LIMITS.min)).any())


def saturating_layers(quantized: ModelProto) -> tuple[str, ...]:
    """Names of the int8 layers of a QDQ model whose sums may saturate on a CPU without VNNI."""
    tensors: dict[str, Any] = {i.name: i for i in quantized.graph.initializer if i.data_type == TensorProto.INT8}
    made = {n.output[0]: n.input[0] for n in quantized.graph.node if n.op_type == "DequantizeLinear"}
    found = []
    for node in quantized.graph.node:
        tensor = tensors.get(made.get(node.input[1], "")) if node.op_type in LAYERS else None
        if tensor is None:
            continue
        weights = numpy_helper.to_array(tensor)
        rows_first = node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute)
        if may_saturate(weights if rows_first else np.moveaxis(weights, -1, 0)):
            found.append(node.name)
    return tuple(found)
