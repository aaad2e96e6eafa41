"""An integer network as a circuit: every layer unrolled into adders, by da4ml (Sun et al. 2025, arXiv:2507.04535).

Products with constants become trees of additions that share their parts, so that no multiplier is needed, and a new row
may come with each clock.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from itertools import product
from typing import Any

import numpy as np
from da4ml.trace import FixedVariableArray, HWConfig, comb_trace
from numpy.typing import NDArray

from tasks.onnx_models.integer_network import (
    IntegerNetwork,
    Layer,
    MaxOver,
    MeanOver,
    Product,
    Rescale,
    Reshaped,
    Turned,
    places,
)
from tasks.running.errors import TargetUnsupported

Circuit = Any
"""A CombLogic of da4ml."""
_ADDERS = HWConfig(1, -1, -1)
_SOLVER = {"hard_dc": 2}
"""How many adders deeper than the shallowest a tree may be, to have fewer of them."""
_EXACT = 1 << 24
"""Float32 holds whole numbers below: what ONNX Runtime multiplies by a scale."""
MOST = 60_000
"""Multiplications that are unrolled; a circuit of more takes no common FPGA, and hours to make."""


def circuit(network: IntegerNetwork, shape: tuple[int, ...]) -> Circuit:
    """Unroll the network for one row.

    Args:
        shape: of a row of its bytes, without the batch.

    Raises:
        TargetUnsupported: too many multiplications, or sums that floats do not hold.
    """
    signs = np.full(shape, int(network.signed))
    given = FixedVariableArray.from_kif(signs, 8 - signs, np.zeros(shape, int), _ADDERS, 0.0, _SOLVER)
    value = given
    for number, layer in enumerate(network.layers):
        value = _through(value, layer, number)
    return comb_trace(given, value)


def multiplications(network: IntegerNetwork, shape: tuple[int, ...]) -> int:
    """How many a row takes when everything is unrolled."""
    total, size = 0, shape
    for layer in network.layers:
        if isinstance(layer, Product) and layer.strides:
            size = (len(layer.weight), *(len(p) for p in _grid(size[1:], layer.weight.shape[2:], layer)))
            total += int(np.count_nonzero(layer.weight)) * int(np.prod(size[1:]))
        elif isinstance(layer, Product):
            total += int(np.count_nonzero(layer.weight))
            size = (len(layer.weight),)
        elif isinstance(layer, MaxOver):
            size = (size[0], *(len(p) for p in _grid(size[1:], layer.kernel, layer)))
        elif isinstance(layer, MeanOver):
            size = (size[0], *[1] * (len(size) - 1))
        elif isinstance(layer, Reshaped):
            size = np.empty(size).reshape(layer.shape).shape
        else:
            size = tuple(size[n - 1] for n in layer.order[1:])
    return total


def refuse_large(network: IntegerNetwork, shape: tuple[int, ...]) -> int:
    """The number of multiplications of a row, if that many can be unrolled.

    Raises:
        TargetUnsupported: they are too many.
    """
    count = multiplications(network, shape)
    if count > MOST:
        raise TargetUnsupported(
            f"target fpga unrolls every multiplication of a row, {MOST} at most, and this model has {count}; a "
            "smaller student fits (budget.max_bytes, or distill and prune further)"
        )
    return count


def _through(value: Any, layer: Layer, number: int) -> Any:
    match layer:
        case Reshaped(shape):
            return value.reshape(shape)
        case Turned(order):
            return value.transpose([n - 1 for n in order[1:]])
        case MaxOver():
            return _maxima(value, layer)
        case MeanOver():
            flat = value.reshape((value.shape[0], -1))
            count = flat.shape[1]
            total = reduce(lambda a, b: a + b, [flat[:, n] for n in range(count)]) - float(layer.zero * count)
            _check(total, number)
            one = layer.rescale(count)
            shifted = _rescaled(total.reshape((-1, 1)), replace(one, shifts=one.shifts * len(total)))
            return shifted.reshape((value.shape[0], *[1] * (value.ndim - 1)))
        case Product():
            sums = _convolved(value, layer) if layer.strides else _dense(value, layer)
            _check(sums, number)
            return sums if layer.rescale is None else _rescaled(sums, layer.rescale)


def _check(sums: Any, number: int) -> None:
    low, high, _ = sums.lhs
    largest = float(max(np.abs(low).max(), np.abs(high).max()))
    if largest >= _EXACT:
        raise TargetUnsupported(
            f"target fpga: sums of layer {number + 1} may reach {largest:.3g}, which float32 does not hold exactly "
            "(2^24), so that ONNX Runtime rounds them; layers of fewer inputs fit"
        )


def _dense(value: Any, layer: Product) -> Any:
    x = value.reshape(-1)
    x = x - float(layer.zero) if layer.zero else x
    return x @ layer.weight.T.astype(float) + layer.bias.astype(float)


def _grid(size: tuple[int, ...], kernel: tuple[int, ...], layer: Product | MaxOver) -> list[list[int]]:
    """Where windows begin along each axis."""
    rank = len(kernel)
    dilations = layer.dilations if isinstance(layer, Product) else (1,) * rank
    return [
        places(n, k, s, d, (layer.pads[axis], layer.pads[axis + rank]))
        for axis, (n, k, s, d) in enumerate(zip(size, kernel, layer.strides, dilations, strict=True))
    ]


def _padded(value: Any, pads: tuple[int, ...], edge: float) -> NDArray[Any]:
    rank = len(pads) // 2
    width = [(0, 0), *((pads[n], pads[n + rank]) for n in range(rank))]
    return np.pad(value._vars, width, constant_values=edge)


def _convolved(value: Any, layer: Product) -> Any:
    """Each place's window times the weights of its group: [outputs, *places]."""
    kernel = layer.weight.shape[2:]
    grid = _grid(value.shape[1:], kernel, layer)
    there = _padded(value, layer.pads, float(layer.zero))
    inputs, outputs = value.shape[0] // layer.groups, len(layer.weight) // layer.groups
    parts = []
    for group in range(layer.groups):
        mine = there[group * inputs : (group + 1) * inputs]
        rows = [_window(mine, at, kernel, layer.dilations).ravel() for at in product(*grid)]
        windows = FixedVariableArray(np.array(rows), value.solver_options, hwconf=value.hwconf)
        windows = windows - float(layer.zero) if layer.zero else windows
        own = slice(group * outputs, (group + 1) * outputs)
        weight = layer.weight[own].reshape(outputs, -1).astype(float)
        parts.append(((windows @ weight.T) + layer.bias[own].astype(float)).transpose())
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return whole.reshape((len(layer.weight), *(len(p) for p in grid)))


def _window(
    there: NDArray[Any], at: tuple[int, ...], kernel: tuple[int, ...], dilations: tuple[int, ...]
) -> NDArray[Any]:
    cut = tuple(slice(a, a + (k - 1) * d + 1, d) for a, k, d in zip(at, kernel, dilations, strict=True))
    window: NDArray[Any] = there[(slice(None), *cut)]
    return window


def _maxima(value: Any, layer: MaxOver) -> Any:
    grid = _grid(value.shape[1:], layer.kernel, layer)
    lowest = float(np.min([v.low for v in value._vars.ravel()]))
    there = _padded(value, layer.pads, lowest)
    ones = (1,) * len(layer.kernel)
    found = []
    for at in product(*grid):
        window = _window(there, at, layer.kernel, ones).reshape(len(there), -1)
        columns = [
            FixedVariableArray(window[:, n], value.solver_options, hwconf=value.hwconf) for n in range(window.shape[1])
        ]
        found.append(reduce(np.maximum, columns)._vars)
    together = FixedVariableArray(np.array(found).T, value.solver_options, hwconf=value.hwconf)
    return together.reshape((value.shape[0], *(len(p) for p in grid)))


def _rescaled(sums: Any, rescale: Rescale) -> Any:
    """Shift right with halves to even, add the zero point, and stay within a byte."""
    channels = []
    for channel, shift in enumerate(rescale.shifts):
        part = sums[channel : channel + 1]
        if shift > 0:
            even = part.quantize(k=0, i=shift + 1, f=-shift, overflow_mode="WRAP", round_mode="TRN")
            part = (part + even * 2.0**-shift + float(2 ** (shift - 1) - 1)) * 2.0**-shift
            # What is below the point is cut off before the zero point comes in.
        elif shift < 0:
            part = part * 2.0**-shift
        part = part + float(rescale.zero)
        signed = int(rescale.low < 0)
        byte = part.quantize(k=signed, i=8 - signed, f=0, overflow_mode="SAT", round_mode="TRN")
        channels.append(byte._vars)
    return FixedVariableArray(np.concatenate(channels), sums.solver_options, hwconf=sums.hwconf)
