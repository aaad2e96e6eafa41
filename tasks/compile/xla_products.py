"""Matrix products and convolutions of floats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tasks.compile.xla_node import FULL, NodeFacts, Operation, Value, by_channel

_SPACE = "DHW"


def _matmul(a: NodeFacts) -> Operation:
    return lambda x, y: jnp.matmul(x, y, precision=FULL)


def _fused_matmul(a: NodeFacts) -> Operation:
    if a.get("transBatchA", 0) or a.get("transBatchB", 0):
        raise a.refuse("transposed batches")
    alpha = np.float32(a.get("alpha", 1.0))

    def run(x: Value, y: Value) -> Value:
        x = jnp.swapaxes(x, -1, -2) if a.get("transA", 0) else x
        y = jnp.swapaxes(y, -1, -2) if a.get("transB", 0) else y
        z = jnp.matmul(x, y, precision=FULL)
        return z if alpha == 1 else z * alpha

    return run


def _gemm(a: NodeFacts) -> Operation:
    alpha, beta = np.float32(a.get("alpha", 1.0)), np.float32(a.get("beta", 1.0))
    after = _activation(a)

    def run(x: Value, weight: Value, bias: Value = None) -> Value:
        x = x.T if a.get("transA", 0) else x
        y = jnp.matmul(x, weight.T if a.get("transB", 0) else weight, precision=FULL)
        y = y if alpha == 1 else alpha * y
        return after(y if bias is None else y + (bias if beta == 1 else beta * bias))

    return run


def _activation(a: NodeFacts) -> Operation:
    """What ONNX Runtime has joined to a product or convolution."""
    name = a.get("activation", "")
    given = list(a.get("activation_params", []))
    alpha = a.get("activation_alpha", given[0] if given else 0.01)
    if name == "":
        return lambda y: y
    if name == "Clip":
        return lambda y: jnp.clip(y, np.float32(given[0]), np.float32(given[1]))
    if name == "LeakyRelu":
        return lambda y: jnp.where(y >= 0, y, np.float32(alpha) * y)
    simple: dict[str, Operation] = {"Relu": jax.nn.relu, "Tanh": jnp.tanh, "Sigmoid": jax.nn.sigmoid}
    if name not in simple:
        raise a.refuse(f"activation {name}")
    return simple[name]


def paddings(a: NodeFacts, size: Sequence[Any], kernel: Sequence[int]) -> list[tuple[Any, Any]]:
    """Begin and end of each spatial axis."""
    rank, how = len(kernel), a.get("auto_pad", "NOTSET")
    if how in ("NOTSET", ""):
        pads = list(a.get("pads", [0] * 2 * rank))
        return list(zip(pads[:rank], pads[rank:], strict=True))
    if how == "VALID":
        return [(0, 0)] * rank
    strides, dilations = a.get("strides", [1] * rank), a.get("dilations", [1] * rank)
    found = []
    for length, width, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        total = max(0, (-(-length // stride) - 1) * stride + (width - 1) * dilation + 1 - length)
        small, large = total // 2, total - total // 2
        found.append((small, large) if how == "SAME_UPPER" else (large, small))
    return found


def layout(rank: int) -> tuple[str, str, str]:
    """Names of the axes of a convolution over that number of spatial axes, as ONNX orders them."""
    space = _SPACE[-rank:]
    return f"NC{space}", f"OI{space}", f"NC{space}"


def convolve(a: NodeFacts, x: Value, weight: Value, pads: Sequence[tuple[Any, Any]], **how: Any) -> Value:
    """A convolution as the node's strides, dilations and groups have it."""
    rank = weight.ndim - 2
    return lax.conv_general_dilated(
        x,
        weight,
        a.get("strides", [1] * rank),
        pads,
        rhs_dilation=a.get("dilations", [1] * rank),
        dimension_numbers=layout(rank),
        feature_group_count=a.get("group", 1),
        **how,
    )


def _conv(a: NodeFacts) -> Operation:
    after = _activation(a)

    def run(x: Value, weight: Value, bias: Value = None, summand: Value = None) -> Value:
        y = convolve(a, x, jnp.asarray(weight), paddings(a, x.shape[2:], weight.shape[2:]), precision=FULL)
        y = y if bias is None else y + by_channel(bias, y.ndim)
        return after(y if summand is None else y + summand)

    return run


def _conv_transpose(a: NodeFacts) -> Operation:
    if a.get("auto_pad", "NOTSET") not in ("NOTSET", "") or a.get("output_shape"):
        raise a.refuse("auto_pad or output_shape")

    def run(x: Value, weight: Value, bias: Value = None) -> Value:
        rank, groups = weight.ndim - 2, a.get("group", 1)
        ones = [1] * rank
        strides, dilations = a.get("strides", ones), a.get("dilations", ones)
        more, pads = a.get("output_padding", [0] * rank), a.get("pads", [0] * 2 * rank)
        width = [
            ((k - 1) * d - pads[n], (k - 1) * d - pads[n + rank] + more[n])
            for n, (k, d) in enumerate(zip(weight.shape[2:], dilations, strict=True))
        ]
        # [in, out / groups, ...] as the weight of a convolution over x with zeros between its elements.
        parts = weight.reshape((groups, weight.shape[0] // groups, *weight.shape[1:]))
        turned = np.flip(np.swapaxes(parts, 1, 2), tuple(range(3, 3 + rank)))
        turned = turned.reshape((-1, weight.shape[0] // groups, *weight.shape[2:]))
        y = lax.conv_general_dilated(
            x,
            jnp.asarray(turned),
            ones,
            width,
            lhs_dilation=strides,
            rhs_dilation=dilations,
            dimension_numbers=layout(rank),
            feature_group_count=groups,
            precision=FULL,
        )
        return y if bias is None else y + by_channel(bias, y.ndim)

    return run


PRODUCT_OPERATORS: dict[tuple[str, str], Callable[[NodeFacts], Operation]] = {
    ("", "MatMul"): _matmul,
    ("com.microsoft", "FusedMatMul"): _fused_matmul,
    ("", "Gemm"): _gemm,
    ("com.microsoft", "FusedGemm"): _gemm,
    ("", "Conv"): _conv,
    ("com.microsoft", "FusedConv"): _conv,
    ("", "ConvTranspose"): _conv_transpose,
}
