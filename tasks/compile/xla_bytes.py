"""Functions of one or two bytes, of which there are 256 or 65 536 cases: ONNX Runtime is asked about all of them.

What is known to be a function of one byte stays one, as a table, through any number of operators.
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
        return into_bytes(jnp.rint(x / scale), zero, kind)

    return run


def into_bytes(rounded: Value, zero: Value, kind: Any) -> Value:
    """Whole numbers in float32 as bytes around a zero point, those too large or small at the end of the range."""
    low, high = _BYTES[np.dtype(kind)]
    at = zero.astype(np.float32)
    clipped = jnp.clip(rounded, low - at, high - at) + at
    return clipped.astype(np.int32).astype(kind)


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
        return into_bytes(jnp.rint(product.astype(np.float32) * factor), zz, zz.dtype)

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
