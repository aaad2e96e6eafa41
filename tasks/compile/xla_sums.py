"""Sums over axes and what is normalized by them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tasks.compile.xla_node import NodeFacts, Operation, Value, axes_of, by_channel


def _reduce(run_over: Callable[..., Value]) -> Callable[[NodeFacts], Operation]:
    def make(a: NodeFacts) -> Operation:
        def run(x: Value, axes: Value = None) -> Value:
            along = axes_of(a, axes)
            if not along:
                if a.get("noop_with_empty_axes", 0):
                    return x
                along = tuple(range(x.ndim))
            return run_over(x, axis=along, keepdims=bool(a.get("keepdims", 1)))

        return run

    return make


def _l2(x: Value, axis: tuple[int, ...], keepdims: bool) -> Value:
    return jnp.sqrt(jnp.sum(x * x, axis=axis, keepdims=keepdims))


def _arg(of_jax: str) -> Callable[[NodeFacts], Operation]:
    def make(a: NodeFacts) -> Operation:
        if a.get("select_last_index", 0):
            raise a.refuse("the last index of several")
        return lambda x: getattr(jnp, of_jax)(x, axis=a.get("axis", 0), keepdims=bool(a.get("keepdims", 1)))

    return make


def _cumulative(a: NodeFacts) -> Operation:
    if a.get("exclusive", 0) or a.get("reverse", 0):
        raise a.refuse("an exclusive or reversed sum")
    return lambda x, axis: jnp.cumsum(x, axis=int(axis))


def _softmax(of_jax: Callable[..., Value]) -> Callable[[NodeFacts], Operation]:
    return lambda a: lambda x: of_jax(x, axis=a.get("axis", -1))


def _layer_norm(a: NodeFacts) -> Operation:
    def run(x: Value, scale: Value, bias: Value = None) -> Value:
        axis = a.get("axis", -1) % x.ndim
        return _normalized(x, tuple(range(axis, x.ndim)), a.get("epsilon", 1e-5), scale, bias)

    return run


def _normalized(x: Value, over: tuple[int, ...], epsilon: float, scale: Value, bias: Value) -> Value:
    centred = x - jnp.mean(x, axis=over, keepdims=True)
    spread = jnp.sqrt(jnp.mean(centred * centred, axis=over, keepdims=True) + np.float32(epsilon))
    y = centred / spread * scale
    return y if bias is None else y + bias


def _skip_layer_norm(a: NodeFacts) -> Operation:
    def run(x: Value, skip: Value, gamma: Value, beta: Value = None, bias: Value = None) -> Value:
        summed = x + skip if bias is None else x + skip + bias
        y = _normalized(summed, (summed.ndim - 1,), a.get("epsilon", 1e-12), gamma, beta)
        return (y, None, None, summed)[: len(a.node.output)]

    return run


def _rms_norm(a: NodeFacts) -> Operation:
    def run(x: Value, scale: Value) -> Value:
        axis = a.get("axis", -1) % x.ndim
        square = jnp.mean(x * x, axis=tuple(range(axis, x.ndim)), keepdims=True)
        return x / jnp.sqrt(square + np.float32(a.get("epsilon", 1e-5))) * scale

    return run


def _batch_norm(a: NodeFacts) -> Operation:
    def run(x: Value, scale: Value, bias: Value, mean: Value, spread: Value) -> Value:
        factor = scale / np.sqrt(spread + np.float32(a.get("epsilon", 1e-5)))
        return x * by_channel(factor, x.ndim) + by_channel(bias - mean * factor, x.ndim)

    return run


def _instance_norm(a: NodeFacts) -> Operation:
    def run(x: Value, scale: Value, bias: Value) -> Value:
        over = tuple(range(2, x.ndim))
        return _normalized(x, over, a.get("epsilon", 1e-5), by_channel(scale, x.ndim), by_channel(bias, x.ndim))

    return run


def _group_norm(a: NodeFacts) -> Operation:
    def run(x: Value, scale: Value, bias: Value) -> Value:
        groups = a.get("num_groups")
        parts = x.reshape((x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]))
        y = _normalized(parts, tuple(range(2, parts.ndim)), a.get("epsilon", 1e-5), np.float32(1), None)
        return y.reshape(x.shape) * by_channel(scale, x.ndim) + by_channel(bias, x.ndim)

    return run


SUM_OPERATORS: dict[tuple[str, str], Callable[[NodeFacts], Operation]] = {
    ("", "ReduceSum"): _reduce(jnp.sum),
    ("", "ReduceMean"): _reduce(jnp.mean),
    ("", "ReduceMax"): _reduce(jnp.max),
    ("", "ReduceMin"): _reduce(jnp.min),
    ("", "ReduceProd"): _reduce(jnp.prod),
    ("", "ReduceL2"): _reduce(_l2),
    ("", "ArgMax"): _arg("argmax"),
    ("", "ArgMin"): _arg("argmin"),
    ("", "CumSum"): _cumulative,
    ("", "Softmax"): _softmax(jax.nn.softmax),
    ("", "LogSoftmax"): _softmax(jax.nn.log_softmax),
    ("", "LayerNormalization"): _layer_norm,
    ("", "RMSNormalization"): _rms_norm,
    ("", "SimplifiedLayerNormalization"): _rms_norm,
    ("com.microsoft", "SkipLayerNormalization"): _skip_layer_norm,
    ("", "BatchNormalization"): _batch_norm,
    ("", "InstanceNormalization"): _instance_norm,
    ("", "GroupNormalization"): _group_norm,
}
