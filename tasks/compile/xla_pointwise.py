"""Functions of each element of a tensor, or of two."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax import lax

from tasks.compile.xla_node import NodeFacts, Operation, Value, known, narrowed, numpy_or_jax


def _both(of_numpy: str) -> Callable[[NodeFacts], Operation]:
    def make(a: NodeFacts) -> Operation:
        return lambda x, y: getattr(numpy_or_jax(x, y), of_numpy)(x, y)

    return make


def _one(run: Callable[[Value], Value]) -> Callable[[NodeFacts], Operation]:
    return lambda a: run


def _divide(a: NodeFacts) -> Operation:
    def run(x: Value, y: Value) -> Value:
        if np.issubdtype(x.dtype, np.integer):
            return np.trunc(x / y).astype(x.dtype) if known(x, y) else lax.div(*jnp.broadcast_arrays(x, y))
        return x / y

    return run


def _most(of_numpy: str) -> Callable[[NodeFacts], Operation]:
    def make(a: NodeFacts) -> Operation:
        def run(first: Value, *others: Value) -> Value:
            for other in others:
                first = getattr(numpy_or_jax(first, other), of_numpy)(first, other)
            return first

        return run

    return make


def _clip(a: NodeFacts) -> Operation:
    def run(x: Value, low: Value = None, high: Value = None) -> Value:
        low, high = (a.get("min") if low is None else low), (a.get("max") if high is None else high)
        xp = numpy_or_jax(x, low, high)
        x = x if low is None else xp.maximum(x, xp.asarray(low, x.dtype))
        return x if high is None else xp.minimum(x, xp.asarray(high, x.dtype))

    return run


def _gelu(a: NodeFacts) -> Operation:
    return partial(jax.nn.gelu, approximate=a.get("approximate", "none") == "tanh")


def _bias_gelu(a: NodeFacts) -> Operation:
    return lambda x, bias: jax.nn.gelu(x + bias, approximate=False)


def _hard_sigmoid(a: NodeFacts) -> Operation:
    alpha, beta = np.float32(a.get("alpha", 0.2)), np.float32(a.get("beta", 0.5))
    return lambda x: jnp.clip(alpha * x + beta, 0, 1)


def _hard_swish(a: NodeFacts) -> Operation:
    return lambda x: x * jnp.clip(x * np.float32(1 / 6) + np.float32(0.5), 0, 1)


def _leaky(a: NodeFacts) -> Operation:
    alpha = np.float32(a.get("alpha", 0.01))
    return lambda x: jnp.where(x >= 0, x, alpha * x)


def _elu(a: NodeFacts) -> Operation:
    return partial(jax.nn.elu, alpha=a.get("alpha", 1.0))


def _prelu(a: NodeFacts) -> Operation:
    return lambda x, slope: jnp.where(x >= 0, x, slope * x)


def _quick_gelu(a: NodeFacts) -> Operation:
    alpha = np.float32(a.get("alpha", 1.702))
    return lambda x: x * jax.nn.sigmoid(alpha * x)


def _cast(a: NodeFacts) -> Operation:
    to = onnx.helper.tensor_dtype_to_np_dtype(a.get("to"))

    def run(x: Value) -> Value:
        if isinstance(x, np.ndarray) and x.dtype == object:  # dimensions, some of them free
            return x
        if not known(x) and np.issubdtype(x.dtype, np.floating) and np.issubdtype(to, np.unsignedinteger):
            return x.astype(np.int32).astype(to)
        return x.astype(narrowed(to))

    return run


def _where(a: NodeFacts) -> Operation:
    return lambda condition, x, y: numpy_or_jax(condition, x, y).where(condition, x, y)


POINTWISE_OPERATORS: dict[tuple[str, str], Callable[[NodeFacts], Operation]] = {
    **{("", name): _both(name.lower()) for name in ("Add", "Equal", "Greater", "Less")},
    ("", "Sub"): _both("subtract"),
    ("", "Mul"): _both("multiply"),
    ("", "Pow"): _both("power"),
    ("", "GreaterOrEqual"): _both("greater_equal"),
    ("", "LessOrEqual"): _both("less_equal"),
    ("", "And"): _both("logical_and"),
    ("", "Or"): _both("logical_or"),
    ("", "Div"): _divide,
    ("", "Min"): _most("minimum"),
    ("", "Max"): _most("maximum"),
    ("", "Sum"): _most("add"),
    ("", "Not"): _one(lambda x: ~x),
    ("", "Neg"): _one(lambda x: -x),
    ("", "Identity"): _one(lambda x: x),
    ("", "Dropout"): _one(lambda x, *_: x),
    **{("", name): _one(getattr(jnp, name.lower())) for name in ("Abs", "Exp", "Log", "Sqrt", "Tanh", "Sign")},
    **{("", name): _one(getattr(jnp, name.lower())) for name in ("Floor", "Ceil", "Sin", "Cos", "IsNaN", "IsInf")},
    ("", "Round"): _one(jnp.rint),
    ("", "Reciprocal"): _one(lambda x: 1 / x),
    ("", "Erf"): _one(jax.scipy.special.erf),
    ("", "Sigmoid"): _one(jax.nn.sigmoid),
    ("", "Relu"): _one(jax.nn.relu),
    ("", "Softplus"): _one(jax.nn.softplus),
    ("", "Softsign"): _one(jax.nn.soft_sign),
    ("", "Mish"): _one(jax.nn.mish),
    ("", "Selu"): _one(jax.nn.selu),
    ("", "HardSigmoid"): _hard_sigmoid,
    ("", "HardSwish"): _hard_swish,
    ("", "LeakyRelu"): _leaky,
    ("", "PRelu"): _prelu,
    ("", "Elu"): _elu,
    ("", "Gelu"): _gelu,
    ("com.microsoft", "Gelu"): _gelu,
    ("com.microsoft", "BiasGelu"): _bias_gelu,
    ("com.microsoft", "QuickGelu"): _quick_gelu,
    ("", "Clip"): _clip,
    ("", "Cast"): _cast,
    ("", "Where"): _where,
}
