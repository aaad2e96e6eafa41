"""The int8 operators of ONNX Runtime in JAX, in the integers that it computes with, so that the bits are the same.

A product of bytes is summed in 32 bits, which every accelerator has, and comes back to bytes by one multiplication in
float32 and one rounding to even (as ``MlasRequantizeOutput`` of ONNX Runtime does): nothing in it depends on an order
of additions, on fused multiplications, or on how a backend approximates a function. What remains are functions of one
or two bytes, of which there are 256 or 65 536 cases: those ONNX Runtime is asked about, all of them, while compiling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from tasks.compile.runtime_answers import ask_runtime
from tasks.compile.xla_node import NodeFacts, Operation, Value, known
from tasks.compile.xla_products import convolve, paddings

_BYTES: dict[Any, tuple[int, int]] = {np.dtype(np.uint8): (0, 255), np.dtype(np.int8): (-128, 127)}


@dataclass(frozen=True)
class Looked:
    """A float tensor that is a function of one byte: ``table[code]``, by the bits of the code."""

    codes: Value
    """uint8 or int8, any shape."""
    table: NDArray[np.float32]
    """[256]"""
    scale: np.float32 | None = None
    """Where it is nothing but dequantized, with ``zero``."""
    zero: int = 0

    def floats(self) -> Value:
        """The tensor itself."""
        if self.scale is None:
            return look_up(self.table, self.codes)
        return (self.codes.astype(np.int32) - self.zero).astype(np.float32) * self.scale

    def map(self, table: NDArray[Any]) -> Value:
        """Another function of the same bytes."""
        return look_up(table, self.codes)


def look_up(table: NDArray[Any], codes: Value) -> Value:
    """``table[code]`` for each byte; a table that changes nothing costs nothing."""
    if table.dtype == codes.dtype and np.array_equal(table, all_bytes(table.dtype)):
        return codes
    index = lax.bitcast_convert_type(codes, np.uint8).astype(np.int32)
    return jnp.take(jnp.asarray(table), index, mode="clip")


def all_bytes(kind: Any) -> NDArray[Any]:
    """The 256 values of uint8 or int8, by their bits."""
    return np.arange(256, dtype=np.uint8).view(kind)


def dequantized(a: NodeFacts) -> Operation:
    """DequantizeLinear; of activations with one scale a :class:`Looked`."""

    def run(x: Value, scale: Value, zero: Value = None) -> Value:
        if a.get("block_size", 0):
            raise a.refuse("scales of blocks")
        zero = np.zeros(np.shape(scale), x.dtype) if zero is None else zero
        if not known(x) and known(scale, zero) and np.size(scale) == 1 and x.dtype in _BYTES:
            one, at = np.float32(np.ravel(scale)[0]), int(np.ravel(zero)[0])
            table = (all_bytes(x.dtype).astype(np.int32) - at).astype(np.float32) * one
            return Looked(x, table, one, at)
        shape = [-1 if n == a.get("axis", 1) % x.ndim else 1 for n in range(x.ndim)] if np.ndim(scale) == 1 else ()
        scale, zero = (v.reshape(shape) if np.size(v) > 1 else v.reshape(()) for v in (scale, zero))
        return (x.astype(np.int32) - zero.astype(np.int32)).astype(np.float32) * scale

    return run


def quantized(a: NodeFacts) -> Operation:
    """QuantizeLinear: a division, a rounding to even, a zero point."""

    def run(x: Value, scale: Value, zero: Value = None) -> Value:
        kind = zero.dtype if zero is not None else np.dtype(np.uint8)
        if kind not in _BYTES:
            raise a.refuse(f"type {kind}")
        if isinstance(x, Looked):
            (table,) = ask_runtime(a.node, x.table, scale, zero)
            return x.map(table)
        shape = [-1 if n == a.get("axis", 1) % x.ndim else 1 for n in range(x.ndim)] if np.size(scale) > 1 else ()
        scale, zero = (np.zeros((), kind) if v is None else v for v in (scale, zero))
        scale, zero = (v.reshape(shape) if np.size(v) > 1 else v.reshape(()) for v in (scale, zero))
        # XLA would multiply by the reciprocal of a constant, which rounds otherwise.
        scale = lax.optimization_barrier(jnp.asarray(scale)) if known(scale) else scale
        return _bytes(jnp.rint(x / scale), zero, kind)

    return run


def _bytes(rounded: Value, zero: Value, kind: Any) -> Value:
    """Whole numbers in float32 as bytes around a zero point, those too large or small at the end of the range."""
    low, high = _BYTES[np.dtype(kind)]
    at = zero.astype(np.float32)
    clipped = jnp.clip(rounded, low - at, high - at) + at
    return clipped.astype(np.int32).astype(kind)


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
        return _bytes(jnp.rint(total.astype(np.float32) * factor), zy, zy.dtype)

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
        return _bytes(jnp.rint(total.astype(np.float32) * _factor(sx, sw, out[0])), out[1], out[1].dtype)

    return run


def qlinear_matmul(a: NodeFacts) -> Operation:
    """QLinearMatMul with a constant on the right."""

    def run(x: Value, sx: Value, zx: Value, w: Value, sw: Value, zw: Value, sy: Value, zy: Value) -> Value:
        total = _product(x, zx, _signed_weight(a, w, zw, 1))
        return _bytes(jnp.rint(total.astype(np.float32) * _factor(sx, sw, sy)), zy, zy.dtype)

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
        return _bytes(jnp.rint(total.astype(np.float32) * factor), zy, zy.dtype)

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
        return _bytes(jnp.rint(total / count / scale), zy, zy.dtype)

    return run


def of_two_bytes(a: NodeFacts) -> Operation:
    """QLinearAdd and QLinearMul: 65 536 cases, each of which is ONNX Runtime's."""

    def run(x: Value, sx: Value, zx: Value, y: Value, sy: Value, zy: Value, sz: Value, zz: Value) -> Value:
        if not known(sx, zx, sy, zy, sz, zz):
            raise a.refuse("scales that are no constants")
        if known(x, y):
            return ask_runtime(a.node, x, sx, zx, y, sy, zy, sz, zz)[0]
        first, second = np.repeat(all_bytes(x.dtype), 256), np.tile(all_bytes(y.dtype), 256)
        (wanted,) = ask_runtime(a.node, first, sx, zx, second, sy, zy, sz, zz)
        facts = [np.asarray(v).reshape(()) for v in (sx, zx, sy, zy, sz, zz)]
        for form in _FORMS[a.node.op_type]:
            function = form(*facts)
            if function is None:
                continue
            with jax.ensure_compile_time_eval():  # while the graph around it is being traced
                found = np.asarray(function(jnp.asarray(first), jnp.asarray(second)))
            if np.array_equal(found, wanted):
                return function(jnp.asarray(x), jnp.asarray(y))
        codes = [lax.bitcast_convert_type(jnp.asarray(v), np.uint8).astype(np.int32) for v in (x, y)]
        return jnp.take(jnp.asarray(wanted), codes[0] * 256 + codes[1], mode="clip")

    return run


_TwoBytes = Callable[[Value, Value], Value] | None


def _add_forms() -> Sequence[Callable[..., _TwoBytes]]:
    """Sums in fixed point, as ``MlasQLinearAdd`` has them; kernels differ in how they round a half."""

    def fixed(round_half: Callable[[Value, int], Value]) -> Callable[..., _TwoBytes]:
        def form(sx: Value, zx: Value, sy: Value, zy: Value, sz: Value, zz: Value) -> _TwoBytes:
            ratios = np.float32(sx) / np.float32(sz), np.float32(sy) / np.float32(sz)
            shift = 21 - (int(np.frexp(max(ratios))[1]) - 1)
            if not 13 <= shift <= 31:
                return None
            by_x, by_y = (np.int32(np.rint(ratio * np.float32(2.0**shift))) for ratio in ratios)
            low, high = _BYTES[zz.dtype]

            def run(x: Value, y: Value) -> Value:
                total = (x.astype(np.int32) - np.int32(zx)) * by_x + (y.astype(np.int32) - np.int32(zy)) * by_y
                z = round_half(total, shift) + np.int32(zz)
                return jnp.clip(z, low, high).astype(zz.dtype)

            return run

        return form

    def away(total: Value, shift: int) -> Value:
        half = np.int32(1 << (shift - 1))
        return (total + half - (total < 0).astype(np.int32)) >> shift

    def even(total: Value, shift: int) -> Value:
        return (total + np.int32((1 << (shift - 1)) - 1) + ((total >> shift) & 1)) >> shift

    def up(total: Value, shift: int) -> Value:
        return (total + np.int32(1 << (shift - 1))) >> shift

    return [fixed(away), fixed(even), fixed(up)]


def _multiply_form(sx: Value, zx: Value, sy: Value, zy: Value, sz: Value, zz: Value) -> _TwoBytes:
    factor = np.float32(np.float32(sx) * np.float32(sy)) / np.float32(sz)

    def run(x: Value, y: Value) -> Value:
        product = (x.astype(np.int32) - np.int32(zx)) * (y.astype(np.int32) - np.int32(zy))
        return _bytes(jnp.rint(product.astype(np.float32) * factor), zz, zz.dtype)

    return run


_FORMS: dict[str, Sequence[Callable[..., _TwoBytes]]] = {"QLinearAdd": _add_forms(), "QLinearMul": [_multiply_form]}


def of_one_byte(a: NodeFacts) -> Operation:
    """QLinearSigmoid, QLinearLeakyRelu: 256 cases."""

    def run(x: Value, *facts: Value) -> Value:
        (table,) = ask_runtime(a.node, all_bytes(x.dtype), *facts)
        return look_up(table, x)

    return run


def qlinear_concat(a: NodeFacts) -> Operation:
    """QLinearConcat: each part comes to the common scale by a table."""

    def run(scale: Value, zero: Value, *parts: Value) -> Value:
        moved = []
        for n in range(0, len(parts), 3):
            x, sx, zx = parts[n : n + 3]
            (table,) = ask_runtime(a.node, scale, zero, all_bytes(x.dtype), sx, zx, axis=0)
            moved.append(look_up(table, jnp.asarray(x)))
        return jnp.concatenate(moved, axis=a.get("axis"))

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

POINTWISE = {
    *("Abs", "Ceil", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log"),
    *("Mish", "Neg", "Relu", "Round", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh", "QuickGelu"),
    *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"),
}
"""Functions of one float, the last ones where all others are constants of one element."""
MOVING = {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "Identity"}
"""What comes out of these went in."""


def still_of_one_byte(a: NodeFacts, inputs: Sequence[Value], operation: Operation) -> Looked | None:
    """The node's answer as a function of one byte, where its first float is one and nothing else varies; or None.

    Args:
        operation: the node itself, which moves the bytes.
    """
    looked = [value for value in inputs if isinstance(value, Looked)]
    if len(looked) != 1:
        return None
    (source,) = looked
    if a.node.op_type in MOVING and isinstance(inputs[0], Looked):
        return Looked(operation(source.codes, *inputs[1:]), source.table, source.scale, source.zero)
    others = [value for value in inputs if value is not source]
    if a.node.op_type not in POINTWISE or not known(*others) or any(np.size(v) > 1 for v in others if v is not None):
        return None
    if any(np.ndim(v) > source.codes.ndim for v in others if v is not None):
        return None
    (table,) = ask_runtime(a.node, *(source.table if value is source else value for value in inputs))
    return Looked(source.codes, np.ravel(table).astype(np.float32))
