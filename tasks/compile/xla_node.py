"""A node of an ONNX graph on its way to JAX: its attributes, and what is known of its inputs while compiling.

Shapes and other constants are NumPy arrays and stay so, since XLA wants to know them while it compiles; a dimension
that is free is a symbol in an array of objects. All the rest are JAX arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from tasks.onnx_models.node_attributes import NodeAttributes
from tasks.running.errors import TargetUnsupported

Value = Any
"""A NumPy array where it is known while compiling, else a JAX array."""
Operation = Callable[..., Value]
"""Takes the node's inputs in order, None for those left out, and answers its output, or a tuple of several."""

FULL = "highest"
"""Precision of products: on TPUs floats are multiplied as bfloat16 otherwise."""


class NodeFacts(NodeAttributes):
    """A node that is compiled, and how it is refused."""

    def refuse(self, why: str) -> TargetUnsupported:
        """The error for what this node asks."""
        node = self.node
        return TargetUnsupported(
            f"target xla cannot take {node.op_type} {node.name or node.output[0]!r}: {why}; the fp32 and static int8 "
            "forms of models of convolutions, matrix products, recurrent layers and attention can be taken",
            node=node.name or node.output[0],
            operator=node.op_type,
        )


def known(*values: Value) -> bool:
    """Whether all of them are known while compiling."""
    return all(v is None or isinstance(v, np.ndarray | np.generic) for v in values)


def numpy_or_jax(*values: Value) -> Any:
    return np if known(*values) else jnp


def whole_numbers(value: Value) -> list[Any]:
    """A known tensor of whole numbers as a list; free dimensions stay symbols."""
    return [int(v) if isinstance(v, int | np.integer | np.floating) else v for v in np.ravel(value).tolist()]


def by_channel(value: Value, rank: int) -> Value:
    """One value for each channel, beside a tensor of so many axes."""
    return value.reshape((1, -1) + (1,) * (rank - 2))


def narrowed(kind: Any) -> Any:
    """XLA computes in 32 bits at most, as accelerators do."""
    return {np.dtype(np.int64): np.int32, np.dtype(np.float64): np.float32}.get(np.dtype(kind), kind)


def axes_of(a: NodeFacts, given: Value) -> tuple[int, ...] | None:
    """Axes, which older opsets have as an attribute; None where none are given."""
    axes = a.get("axes") if given is None else whole_numbers(given)
    return None if axes is None else tuple(axes)
