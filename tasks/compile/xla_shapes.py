"""What moves elements and computes shapes; no number changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx

from tasks.compile.xla_node import NodeFacts, Operation, Value, axes_of, known, narrowed, numpy_or_jax, whole_numbers


def _shape(a: NodeFacts) -> Operation:
    def run(x: Value) -> Value:
        dims = list(x.shape)[a.get("start", 0) : a.get("end")]
        sure = all(isinstance(d, int) for d in dims)
        return np.array(dims, np.int64) if sure else np.array([*dims, None], object)[:-1]

    return run


def _reshape(a: NodeFacts) -> Operation:
    keeps_zero = a.get("allowzero", 0)

    def run(x: Value, shape: Value) -> Value:
        if not known(shape):
            raise a.refuse("a shape that depends on the values of the inputs")
        wanted = whole_numbers(shape)
        dims = [x.shape[n] if _is(d, 0) and not keeps_zero else d for n, d in enumerate(wanted)]
        return x.reshape(dims) if known(x) else jnp.reshape(x, dims)

    return run


def _is(dimension: Any, number: int) -> bool:
    return isinstance(dimension, int) and dimension == number


def _flatten(a: NodeFacts) -> Operation:
    axis = a.get("axis", 1)

    def run(x: Value) -> Value:
        at = axis % (x.ndim + 1) if axis >= 0 else axis + x.ndim
        return x.reshape((math.prod(x.shape[:at]), math.prod(x.shape[at:])))

    return run


def _transpose(a: NodeFacts) -> Operation:
    return lambda x: x.transpose(a.get("perm"))


def _squeeze(a: NodeFacts) -> Operation:
    return lambda x, axes=None: numpy_or_jax(x).squeeze(x, axes_of(a, axes))


def _unsqueeze(a: NodeFacts) -> Operation:
    return lambda x, axes=None: numpy_or_jax(x).expand_dims(x, axes_of(a, axes))


def _concat(a: NodeFacts) -> Operation:
    return lambda *parts: numpy_or_jax(*parts).concatenate(parts, axis=a.get("axis"))


def _split(a: NodeFacts) -> Operation:
    def run(x: Value, sizes: Value = None) -> Value:
        axis = a.get("axis", 0)
        if sizes is None and not a.get("split"):
            parts = a.get("num_outputs") or len(a.node.output)
            step = -(-x.shape[axis] // parts)
            at = [step * n for n in range(1, parts)]
        else:
            at = np.cumsum(a.get("split") or whole_numbers(sizes))[:-1].tolist()
        return tuple(numpy_or_jax(x).split(x, at, axis=axis))

    return run


def _slice(a: NodeFacts) -> Operation:
    def run(x: Value, starts: Value, ends: Value, axes: Value = None, steps: Value = None) -> Value:
        if not known(starts, ends, axes, steps):
            raise a.refuse("bounds that depend on the values of the inputs")
        begins, stops = whole_numbers(starts), whole_numbers(ends)
        along = range(len(begins)) if axes is None else whole_numbers(axes)
        strides = [1] * len(begins) if steps is None else whole_numbers(steps)
        cut = [slice(None)] * x.ndim
        for axis, begin, end, stride in zip(along, begins, stops, strides, strict=True):
            far = isinstance(end, int) and abs(end) > 1 << 30
            cut[axis] = slice(begin, None if far else end, stride)
        return x[tuple(cut)]

    return run


def _gather(a: NodeFacts) -> Operation:
    def run(x: Value, indices: Value) -> Value:
        axis = a.get("axis", 0)
        if known(x, indices):
            return np.take(x, indices, axis=axis)
        indices = jnp.asarray(indices)
        size = x.shape[axis]
        return jnp.take(jnp.asarray(x), jnp.where(indices < 0, indices + size, indices), axis=axis, mode="clip")

    return run


def _gather_nd(a: NodeFacts) -> Operation:
    if a.get("batch_dims", 0):
        raise a.refuse("batches of indices")

    def run(x: Value, indices: Value) -> Value:
        at = jnp.asarray(indices)
        where = tuple(jnp.where(at[..., n] < 0, at[..., n] + x.shape[n], at[..., n]) for n in range(at.shape[-1]))
        return jnp.asarray(x)[where]

    return run


def _expand(a: NodeFacts) -> Operation:
    def run(x: Value, shape: Value) -> Value:
        wanted = whole_numbers(shape)
        rank = max(len(wanted), x.ndim)
        mine, theirs = [1] * (rank - x.ndim) + list(x.shape), [1] * (rank - len(wanted)) + wanted
        dims = [m if _is(t, 1) else t for m, t in zip(mine, theirs, strict=True)]
        sure = known(x) and all(isinstance(d, int) for d in dims)
        return np.broadcast_to(x, dims) if sure else jnp.broadcast_to(jnp.asarray(x), dims)

    return run


def _tile(a: NodeFacts) -> Operation:
    return lambda x, repeats: numpy_or_jax(x).tile(x, whole_numbers(repeats))


def _constant_of_shape(a: NodeFacts) -> Operation:
    value = onnx.numpy_helper.to_array(a.get("value")).ravel()[0] if a.get("value") is not None else np.float32(0)

    def run(shape: Value) -> Value:
        dims = whole_numbers(shape)
        sure = all(isinstance(d, int) for d in dims)
        return np.full(dims, value) if sure else jnp.full(dims, value, narrowed(value.dtype))

    return run


def _range(a: NodeFacts) -> Operation:
    def run(start: Value, limit: Value, step: Value) -> Value:
        begin, end, stride = (whole_numbers(v)[0] for v in (start, limit, step))
        return np.arange(begin, end, stride) if isinstance(end, int) else jnp.arange(begin, end, stride)

    return run


def _pad(a: NodeFacts) -> Operation:
    def run(x: Value, pads: Value = None, value: Value = None, axes: Value = None) -> Value:
        amounts = a.get("pads") if pads is None else whole_numbers(pads)
        along = list(range(x.ndim)) if axes is None else [n % x.ndim for n in whole_numbers(axes)]
        width = [(0, 0)] * x.ndim
        for n, axis in enumerate(along):
            width[axis] = (amounts[n], amounts[n + len(along)])
        mode = a.get("mode", "constant")
        if mode != "constant":
            return jnp.pad(x, width, mode={"reflect": "reflect", "edge": "edge", "wrap": "wrap"}[mode])
        return jnp.pad(x, width, constant_values=a.get("value", 0.0) if value is None else value)

    return run


SHAPE_OPERATORS: dict[tuple[str, str], Callable[[NodeFacts], Operation]] = {
    ("", "Shape"): _shape,
    ("", "Reshape"): _reshape,
    ("", "Flatten"): _flatten,
    ("", "Transpose"): _transpose,
    ("", "Squeeze"): _squeeze,
    ("", "Unsqueeze"): _unsqueeze,
    ("", "Concat"): _concat,
    ("", "Split"): _split,
    ("", "Slice"): _slice,
    ("", "Gather"): _gather,
    ("", "GatherND"): _gather_nd,
    ("", "Expand"): _expand,
    ("", "Tile"): _tile,
    ("", "ConstantOfShape"): _constant_of_shape,
    ("", "Range"): _range,
    ("", "Pad"): _pad,
}
