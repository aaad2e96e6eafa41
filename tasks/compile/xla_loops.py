"""Recurrent layers in JAX: LSTM, GRU and RNN as loops over the steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tasks.compile.xla_node import FULL, NodeFacts, Operation, Value

_Step = Callable[[Any, Value], tuple[Any, Value]]


def recurrent(a: NodeFacts) -> Operation:
    """LSTM, GRU or RNN with the activations of the standard. x [steps, batch, values]."""
    cell = _CELLS[a.node.op_type]
    ways = a.get("direction", "forward")
    if a.get("layout", 0) or a.get("clip") or a.get("input_forget", 0):
        raise a.refuse("layout, clip or input_forget")
    named = [n.decode() if isinstance(n, bytes) else n for n in a.get("activations", [])]
    usual = _USUAL[a.node.op_type] * (2 if ways == "bidirectional" else 1)
    if named and [n.lower() for n in named] != usual:
        raise a.refuse(f"activations {', '.join(named)}")

    def run(
        x: Value,
        w: Value,
        r: Value,
        b: Value = None,
        lengths: Value = None,
        h: Value = None,
        c: Value = None,
        p: Value = None,
    ) -> Value:
        if lengths is not None or p is not None:
            raise a.refuse("lengths of sequences or peepholes")
        size, batch = r.shape[-1], x.shape[1]
        answers, lasts = [], []
        for n, backward in enumerate({"forward": [False], "reverse": [True]}.get(ways, [False, True])):
            bias = np.zeros(2 * w.shape[1], np.float32) if b is None else b[n]
            start = tuple(jnp.zeros((batch, size), x.dtype) if s is None else jnp.asarray(s)[n] for s in (h, c))
            step = cell(a, jnp.asarray(w[n]), jnp.asarray(r[n]), bias, size)
            last, found = lax.scan(step, start, x, reverse=backward)
            answers.append(found)
            lasts.append(last)
        states = tuple(jnp.stack([last[k] for last in lasts]) for k in (0, 1))
        return (jnp.stack(answers, axis=1), *states)[: max(1, len(a.node.output))]

    return run


def _lstm(a: NodeFacts, w: Value, r: Value, bias: Value, size: int) -> _Step:
    def step(state: Any, x: Value) -> tuple[Any, Value]:
        h, c = state
        gates = jnp.matmul(x, w.T, precision=FULL) + jnp.matmul(h, r.T, precision=FULL)
        i, o, f, g = jnp.split(gates + (bias[: 4 * size] + bias[4 * size :]), 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    return step


def _gru(a: NodeFacts, w: Value, r: Value, bias: Value, size: int) -> _Step:
    before, after = bias[: 3 * size], bias[3 * size :]

    def step(state: Any, x: Value) -> tuple[Any, Value]:
        h, unused = state
        given = jnp.matmul(x, w.T, precision=FULL) + before
        z, reset = (
            jax.nn.sigmoid(
                given[:, n * size : (n + 1) * size]
                + jnp.matmul(h, r[n * size : (n + 1) * size].T, precision=FULL)
                + after[n * size : (n + 1) * size]
            )
            for n in (0, 1)
        )
        last = slice(2 * size, None)
        if a.get("linear_before_reset", 0):
            kept = reset * (jnp.matmul(h, r[last].T, precision=FULL) + after[last])
        else:
            kept = jnp.matmul(reset * h, r[last].T, precision=FULL) + after[last]
        h = (1 - z) * jnp.tanh(given[:, last] + kept) + z * h
        return (h, unused), h

    return step


def _rnn(a: NodeFacts, w: Value, r: Value, bias: Value, size: int) -> _Step:
    def step(state: Any, x: Value) -> tuple[Any, Value]:
        h, unused = state
        total = jnp.matmul(x, w.T, precision=FULL) + jnp.matmul(h, r.T, precision=FULL)
        h = jnp.tanh(total + (bias[:size] + bias[size:]))
        return (h, unused), h

    return step


_CELLS = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
_USUAL = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}
LOOPS: dict[tuple[str, str], Callable[[NodeFacts], Operation]] = {("", name): recurrent for name in _CELLS}
