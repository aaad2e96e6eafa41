"""Pools and resizing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from tasks.compile.xla_node import NodeFacts, Operation, Value, whole_numbers
from tasks.compile.xla_products import paddings


def _ceiled(a: NodeFacts, size: Sequence[Any], kernel: Sequence[int]) -> list[tuple[Any, Any]]:
    """Paddings of a pool; where the number of windows is rounded up, the last ones reach past the end."""
    pads = paddings(a, size, kernel)
    if not a.get("ceil_mode", 0):
        return pads
    rank = len(kernel)
    strides, dilations = a.get("strides", [1] * rank), a.get("dilations", [1] * rank)
    found = []
    for (begin, end), length, width, stride, dilation in zip(pads, size, kernel, strides, dilations, strict=True):
        span = (width - 1) * dilation + 1
        windows = -(-(length + begin + end - span) // stride) + 1
        windows -= (windows - 1) * stride >= length + begin  # none may start in the padding at the end
        found.append((begin, max(end, (windows - 1) * stride + span - length - begin)))
    return found


def _window(a: NodeFacts, x: Value, start: Any, run: Any, pads: Sequence[tuple[Any, Any]]) -> Value:
    kernel = list(a.get("kernel_shape"))
    rank = len(kernel)
    return lax.reduce_window(
        x,
        start,
        run,
        (1, 1, *kernel),
        (1, 1, *a.get("strides", [1] * rank)),
        [(0, 0), (0, 0), *pads],
        window_dilation=(1, 1, *a.get("dilations", [1] * rank)),
    )


def _max_pool(a: NodeFacts) -> Operation:
    if len([name for name in a.node.output if name]) > 1 or a.get("storage_order", 0):
        raise a.refuse("the places of the maxima")

    def run(x: Value) -> Value:
        lowest = np.iinfo(x.dtype).min if np.issubdtype(x.dtype, np.integer) else -np.inf
        pads = _ceiled(a, x.shape[2:], a.get("kernel_shape"))
        return _window(a, x, np.asarray(lowest, x.dtype), lax.max, pads)

    return run


def _average_pool(a: NodeFacts) -> Operation:
    def run(x: Value) -> Value:
        pads, zero = _ceiled(a, x.shape[2:], a.get("kernel_shape")), np.float32(0)
        total = _window(a, x, zero, lax.add, pads)
        if a.get("count_include_pad", 0):
            outside = paddings(a, x.shape[2:], a.get("kernel_shape"))
            ones = jnp.pad(jnp.ones((1, 1, *x.shape[2:]), x.dtype), [(0, 0), (0, 0), *outside], constant_values=1)
            further = [(p[0] - o[0], p[1] - o[1]) for p, o in zip(pads, outside, strict=True)]
            return total / _window(a, ones, zero, lax.add, further)
        return total / _window(a, jnp.ones((1, 1, *x.shape[2:]), x.dtype), zero, lax.add, pads)

    return run


def _global(over: Callable[..., Value]) -> Callable[[NodeFacts], Operation]:
    return lambda a: lambda x: over(x, axis=tuple(range(2, x.ndim)), keepdims=True)


def _resize(a: NodeFacts) -> Operation:
    """Nearest and linear, by the places of ONNX; cubic is refused."""
    mode, places = a.get("mode", "nearest"), a.get("coordinate_transformation_mode", "half_pixel")
    rounding = a.get("nearest_mode", "round_prefer_floor")
    if mode not in ("nearest", "linear") or a.get("antialias", 0) or a.get("axes"):
        raise a.refuse(f"mode {mode}")
    if places not in ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"):
        raise a.refuse(f"coordinates {places}")

    def run(x: Value, roi: Value = None, scales: Value = None, sizes: Value = None) -> Value:
        if sizes is not None and np.size(sizes):
            wanted = whole_numbers(sizes)
            factors = [
                w / n if isinstance(w, int) and isinstance(n, int) else 1.0
                for w, n in zip(wanted, x.shape, strict=False)
            ]
        else:
            factors = [float(s) for s in np.ravel(scales)]
            wanted = [
                int(np.float32(n) * np.float32(s)) if isinstance(n, int) else n
                for n, s in zip(x.shape, factors, strict=True)
            ]
        for axis in range(x.ndim):
            if isinstance(wanted[axis], int) and not isinstance(x.shape[axis], int):
                raise a.refuse(f"a size that is fixed at {wanted[axis]} for axis {axis}, which is free")
            if isinstance(wanted[axis], int) and wanted[axis] != x.shape[axis]:
                x = along(x, axis, wanted[axis], factors[axis])
        return x

    def along(x: Value, axis: int, size: int, factor: float) -> Value:
        length = x.shape[axis]
        at = _source_places(places, size, length, factor)
        if mode == "nearest":
            return jnp.take(x, np.clip(_rounded(at, rounding), 0, length - 1).astype(np.int32), axis=axis)
        at = np.clip(at, 0, length - 1)
        low = np.floor(at).astype(np.int32)
        share = (at - low).astype(np.float32).reshape([-1 if n == axis else 1 for n in range(x.ndim)])
        high = np.minimum(low + 1, length - 1)
        return jnp.take(x, low, axis=axis) * (1 - share) + jnp.take(x, high, axis=axis) * share

    return run


def _source_places(places: str, size: int, length: int, scale: float) -> np.ndarray[Any, Any]:
    index, factor = np.arange(size, dtype=np.float32), np.float32(scale)
    if places == "asymmetric":
        return index / factor
    if places == "align_corners":
        return index * np.float32(length - 1) / np.float32(size - 1) if size > 1 else np.zeros(1)
    if places == "pytorch_half_pixel" and size == 1:
        return np.zeros(1)
    return (index + np.float32(0.5)) / factor - np.float32(0.5)


def _rounded(at: np.ndarray[Any, Any], how: str) -> np.ndarray[Any, Any]:
    by_name: dict[str, Callable[[Any], Any]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
    }
    found: np.ndarray[Any, Any] = by_name[how](at)
    return found


WINDOW_OPERATORS: dict[tuple[str, str], Callable[[NodeFacts], Operation]] = {
    ("", "MaxPool"): _max_pool,
    ("", "AveragePool"): _average_pool,
    ("", "GlobalAveragePool"): _global(jnp.mean),
    ("", "GlobalMaxPool"): _global(jnp.max),
    ("", "Resize"): _resize,
}
