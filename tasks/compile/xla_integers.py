"""The int8 operators of ONNX Runtime in JAX, in the integers that it computes with, so that the bits are the same.

A product of bytes is summed in 32 bits, which every accelerator has, and comes back to bytes by one multiplication in
float32 and one rounding to even (as ``MlasRequantizeOutput`` of ONNX Runtime does): nothing in it depends on an order
of additions, on fused multiplications, or on how a backend approximates a function. What remains are functions of one
or two bytes, see :mod:`tasks.compile.xla_bytes`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from tasks.compile.xla_bytes import (
    all_bytes,
    dequantized,
    into_bytes,
    look_up,
    of_one_byte,
    of_two_bytes,
    qlinear_concat,
    quantized,
)
from tasks.compile.xla_node import NodeFacts, Operation, Value, known
from tasks.compile.xla_products import convolve, paddings


def _sums(product: Callable[[Value, Value], Value], x: Value, zero: Value, weight: Value, of_weight: Value) -> Value:
    """``product(x - zero, weight)`` in int32, from bytes that are signed, which is what accelerators multiply.

    Args:
        product: of signed bytes, into int32.
        of_weight: product of ones and the weight, int32: what an offset of one adds everywhere.
    """
    at = int(np.ravel(zero)[0]) if known(zero) else zero.astype(np.int32)
    signed, shift = (x, 0) if x.dtype == np.int8 else ((x.astype(np.int32) - 128).astype(np.int8), 128)
    total = product(signed, weight)
    return total if known(zero) and at == shift else total + (shift - at) * of_weight


def _signed_weight(a: NodeFacts, weight: Value, zero: Value, axis: int) -> Value:
    """The weight around its zero point as signed bytes."""
    if not known(weight, zero):
        raise a.refuse("a weight that is no constant")
    at = np.zeros((), np.int32) if zero is None else np.asarray(zero, np.int32)
    if at.size > 1:
        at = at.reshape([-1 if n == axis else 1 for n in range(weight.ndim)])
    around = weight.astype(np.int32) - at.reshape(()) if at.size == 1 else weight.astype(np.int32) - at
    if around.min() < -128 or around.max() > 127:
        raise a.refuse("a weight that takes more than 8 bits around its zero point")
    return around.astype(np.int8)


def _multiply(weight: Value) -> Callable[[Value, Value], Value]:
    """x [..., K] times weight [K, N], summed in int32."""

    def product(x: Value, w: Value) -> Value:
        dims = (((x.ndim - 1,), (0,)), ((), ()))
        return lax.dot_general(x, jnp.asarray(w), dims, preferred_element_type=np.int32)

    return product


def _product(x: Value, zero: Value, weight: Value) -> Value:
    return _sums(_multiply(weight), x, zero, weight, weight.astype(np.int32).sum(0).astype(np.int32))


def _factor(*parts: Value) -> Value:
    """Scale of the sums against that of the answer, by the operations and in the order of ONNX Runtime."""
    first, second, *over = (np.asarray(part, np.float32) for part in parts)
    found = first.reshape(()) * second
    return found / over[0].reshape(()) if over else found


def qlinear_conv(a: NodeFacts) -> Operation:
    """QLinearConv. The edges are padded with the zero point, before bytes become signed."""

    def run(
        x: Value, sx: Value, zx: Value, w: Value, sw: Value, zw: Value, sy: Value, zy: Value, bias: Value = None
    ) -> Value:
        weight = _signed_weight(a, w, zw, 0)
        pads = paddings(a, x.shape[2:], weight.shape[2:])
        if any(side for pair in pads for side in pair):
            x = jnp.pad(x, [(0, 0), (0, 0), *pads], constant_values=zx.reshape(()))
        none = [(0, 0)] * len(pads)

        def product(signed: Value, kernel: Value) -> Value:
            return convolve(a, signed, jnp.asarray(kernel), none, preferred_element_type=np.int32)

        shape = (1, -1) + (1,) * len(pads)
        ones = weight.astype(np.int32).sum(axis=tuple(range(1, weight.ndim))).astype(np.int32).reshape(shape)
        total = _sums(product, x, zx, weight, ones)
        total = total if bias is None else total + bias.astype(np.int32).reshape(shape)
        factor = _factor(sx, sw, sy)
        factor = factor.reshape(shape) if factor.size > 1 else factor.reshape(())
        return into_bytes(jnp.rint(total.astype(np.float32) * factor), zy, zy.dtype)

    return run


def qgemm(a: NodeFacts) -> Operation:
    """QGemm of ONNX Runtime; without a scale of the answer it answers floats."""
    if a.get("transA", 0) or a.get("alpha", 1.0) != 1.0:
        raise a.refuse("transA or alpha")

    def run(x: Value, sx: Value, zx: Value, w: Value, sw: Value, zw: Value, bias: Value = None, *out: Value) -> Value:
        weight = _signed_weight(a, w.T if a.get("transB", 0) else w, zw, 1)
        total = _product(x, zx, weight)
        total = total if bias is None else total + bias.astype(np.int32)
        if not out:
            return total.astype(np.float32) * _factor(sx, sw)
        return into_bytes(jnp.rint(total.astype(np.float32) * _factor(sx, sw, out[0])), out[1], out[1].dtype)

    return run


def qlinear_matmul(a: NodeFacts) -> Operation:
    """QLinearMatMul with a constant on the right."""

    def run(x: Value, sx: Value, zx: Value, w: Value, sw: Value, zw: Value, sy: Value, zy: Value) -> Value:
        total = _product(x, zx, _signed_weight(a, w, zw, 1))
        return into_bytes(jnp.rint(total.astype(np.float32) * _factor(sx, sw, sy)), zy, zy.dtype)

    return run


def matmul_integer(a: NodeFacts) -> Operation:
    """MatMulInteger with a constant on the right; int32."""

    def run(x: Value, w: Value, zx: Value = None, zw: Value = None) -> Value:
        zero = np.zeros((), x.dtype) if zx is None else zx
        return _product(x, zero, _signed_weight(a, w, zw, 1))

    return run


def matmul_integer_to_float(a: NodeFacts) -> Operation:
    """MatMulIntegerToFloat of ONNX Runtime with a constant on the right."""

    def run(x: Value, w: Value, sx: Value, sw: Value, zx: Value = None, zw: Value = None, bias: Value = None) -> Value:
        zero = np.zeros((), x.dtype) if zx is None else zx
        total = _product(x, zero, _signed_weight(a, w, zw, 1)).astype(np.float32)
        y = total * (sx.reshape(()) * np.ravel(sw) if np.size(sw) > 1 else sx.reshape(()) * sw.reshape(()))
        return y if bias is None else y + bias

    return run


def dynamic_quantize(a: NodeFacts) -> Operation:
    """DynamicQuantizeLinear: bytes, scale and zero point of the whole tensor."""
    return lambda x: _dynamic(x)


def _dynamic(x: Value) -> tuple[Value, Value, Value]:
    low, high = jnp.minimum(x.min(), 0), jnp.maximum(x.max(), 0)
    scale = (high - low) / lax.optimization_barrier(np.float32(255))
    scale = jnp.where(scale == 0, np.float32(1), scale)
    zero = jnp.clip(jnp.rint(jnp.clip(-low / scale, 0, 255)), 0, 255)
    codes = jnp.clip(jnp.rint(x / scale), -zero, 255 - zero) + zero
    return codes.astype(np.int32).astype(np.uint8), scale, zero.astype(np.int32).astype(np.uint8)


def dynamic_matmul(a: NodeFacts) -> Operation:
    """DynamicQuantizeMatMul of ONNX Runtime."""
    after = matmul_integer_to_float(a)

    def run(x: Value, w: Value, sw: Value, zw: Value = None, bias: Value = None) -> Value:
        codes, scale, zero = _dynamic(x)
        return after(codes, w, scale, sw, zero, zw, bias)

    return run


def qlinear_global_average(a: NodeFacts) -> Operation:
    """QLinearGlobalAveragePool: a sum of whole numbers, one multiplication."""
    if a.get("channels_last", 0):
        raise a.refuse("channels last")

    def run(x: Value, sx: Value, zx: Value, sy: Value, zy: Value) -> Value:
        over = tuple(range(2, x.ndim))
        count = int(np.prod(x.shape[2:]))
        total = jnp.sum(x.astype(np.int32), axis=over, keepdims=True) - int(zx.reshape(())) * count
        factor = np.float32(sx.reshape(())) / np.float32(np.float32(sy.reshape(())) * np.float32(count))
        return into_bytes(jnp.rint(total.astype(np.float32) * factor), zy, zy.dtype)

    return run


def qlinear_average(a: NodeFacts) -> Operation:
    """QLinearAveragePool, but for halves: ONNX Runtime adds floats, and a mean in the middle between two bytes falls as
    their rounding has it."""
    if a.get("channels_last", 0) or a.get("ceil_mode", 0) or a.get("count_include_pad", 0):
        raise a.refuse("channels last, rounding up, or counting what is padded")

    def run(x: Value, sx: Value, zx: Value, sy: Value, zy: Value) -> Value:
        kernel = list(a.get("kernel_shape"))
        strides = a.get("strides", [1] * len(kernel))
        pads = paddings(a, x.shape[2:], kernel)
        table = (all_bytes(x.dtype).astype(np.int32) - int(zx.reshape(()))).astype(np.float32) * sx.reshape(())
        width = [(0, 0), (0, 0), *pads]
        floats = jnp.pad(look_up(table, x), width)  # what lies outside adds nothing, and is not counted
        counted = np.pad(np.ones(x.shape[2:], np.float32), pads)
        sizes = [(n - k) // s + 1 for n, k, s in zip(floats.shape[2:], kernel, strides, strict=True)]
        total, count = jnp.zeros((*x.shape[:2], *sizes), np.float32), np.zeros(sizes, np.float32)
        for at in np.ndindex(*kernel):
            part = tuple(slice(i, i + s * (n - 1) + 1, s) for i, s, n in zip(at, strides, sizes, strict=True))
            total, count = total + floats[(..., *part)], count + counted[part]
        count = lax.optimization_barrier(jnp.asarray(count))
        scale = lax.optimization_barrier(jnp.asarray(sy.reshape(())))
        return into_bytes(jnp.rint(total / count / scale), zy, zy.dtype)

    return run


def matmul_nbits(a: NodeFacts) -> Operation:
    """MatMulNBits: the weight as floats, known while compiling."""

    def run(
        x: Value, packed: Value, scales: Value, zeros: Value = None, group: Value = None, bias: Value = None
    ) -> Value:
        columns, rows, bits, block = (int(a.get(name)) for name in ("N", "K", "bits", "block_size"))
        if bits not in (4, 8) or group is not None or not known(packed, scales, zeros):
            raise a.refuse(f"{bits} bits, or groups")
        blocks = -(-rows // block)
        weight = _unpacked(packed, bits).reshape(columns, blocks, block).astype(np.float32)
        at: Value = np.float32(1 << (bits - 1))
        if zeros is not None:
            at = zeros if zeros.dtype == np.float32 else _unpacked(zeros.reshape(columns, -1), bits)[:, :blocks]
            at = at.reshape(columns, blocks, 1).astype(np.float32)
        floats = ((weight - at) * scales.reshape(columns, blocks, 1)).reshape(columns, -1)[:, :rows]
        y = jnp.matmul(x, floats.T.astype(np.float32), precision="highest")
        return y if bias is None else y + bias

    return run


def _unpacked(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The low half of each byte first."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


INTEGER_OPERATORS: dict[tuple[str, str], Callable[[NodeFacts], Operation]] = {
    ("", "QuantizeLinear"): quantized,
    ("", "DequantizeLinear"): dequantized,
    ("com.microsoft", "QuantizeLinear"): quantized,
    ("com.microsoft", "DequantizeLinear"): dequantized,
    ("", "QLinearConv"): qlinear_conv,
    ("com.microsoft", "QGemm"): qgemm,
    ("", "QLinearMatMul"): qlinear_matmul,
    ("", "MatMulInteger"): matmul_integer,
    ("com.microsoft", "MatMulIntegerToFloat"): matmul_integer_to_float,
    ("", "DynamicQuantizeLinear"): dynamic_quantize,
    ("com.microsoft", "DynamicQuantizeMatMul"): dynamic_matmul,
    ("com.microsoft", "QLinearGlobalAveragePool"): qlinear_global_average,
    ("com.microsoft", "QLinearAveragePool"): qlinear_average,
    ("com.microsoft", "QLinearAdd"): of_two_bytes,
    ("com.microsoft", "QLinearMul"): of_two_bytes,
    ("com.microsoft", "QLinearSigmoid"): of_one_byte,
    ("com.microsoft", "QLinearLeakyRelu"): of_one_byte,
    ("com.microsoft", "QLinearConcat"): qlinear_concat,
    ("com.microsoft", "MatMulNBits"): matmul_nbits,
}
