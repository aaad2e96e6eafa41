"""An ONNX graph as a JAX function, and that as StableHLO: one artifact for TPUs, GPUs and CPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from model_registry.datatypes import NUMPY_NAMES
from model_registry.variant import TensorSpec
from tasks.compile.xla_bytes import Looked, still_of_one_byte
from tasks.compile.xla_integers import INTEGER_OPERATORS
from tasks.compile.xla_loops import LOOPS
from tasks.compile.xla_node import NodeFacts, Operation, Value, known
from tasks.compile.xla_pointwise import POINTWISE_OPERATORS
from tasks.compile.xla_products import PRODUCT_OPERATORS
from tasks.compile.xla_shapes import SHAPE_OPERATORS
from tasks.compile.xla_sums import SUM_OPERATORS
from tasks.compile.xla_windows import WINDOW_OPERATORS

PLATFORMS = ("tpu", "cpu", "cuda")
_ALL = {
    **POINTWISE_OPERATORS,
    **SHAPE_OPERATORS,
    **SUM_OPERATORS,
    **PRODUCT_OPERATORS,
    **WINDOW_OPERATORS,
    **LOOPS,
    **INTEGER_OPERATORS,
}
_FLOATS = {np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.float64)}


@dataclass(frozen=True)
class XlaProgram:
    """What :func:`xla_program` makes of a graph."""

    artifact: bytes
    """As ``jax.export`` serializes it: StableHLO with the shapes of inputs and answers around."""
    float_operators: tuple[str, ...]
    """Operators that compute in floats of which bits are no promise; none: the answers are the same bits anywhere."""


def xla_program(model: ModelProto, inputs: Sequence[TensorSpec]) -> XlaProgram:
    """Compile the graph for every platform at once; the batch stays free where the inputs' is.

    Args:
        model: as ONNX Runtime runs it, see :func:`tasks.onnx_models.graph_as_run.as_run`.
        inputs: of the variant, in the order in which the function takes them.

    Raises:
        TargetUnsupported: names the node and what it asks.
    """
    graph = _Graph(model, [spec.name for spec in inputs])
    scope = jax.export.SymbolicScope()
    shapes = [
        jax.ShapeDtypeStruct(
            jax.export.symbolic_shape(", ".join(_dimensions(spec)), scope=scope) if -1 in spec.shape else spec.shape,
            _kind(spec),
        )
        for spec in inputs
    ]
    exported = jax.export.export(jax.jit(graph.run), platforms=PLATFORMS)(*shapes)
    return XlaProgram(bytes(exported.serialize()), tuple(sorted(graph.float_operators)))


def call_program(artifact: bytes) -> Callable[..., tuple[np.ndarray[Any, Any], ...]]:
    """The artifact as a function, on the device that JAX finds here. Takes the inputs in order."""
    exported = jax.export.deserialize(bytearray(artifact))
    run = jax.jit(exported.call)

    def call(*inputs: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], ...]:
        wanted = [value.astype(aval.dtype, copy=False) for value, aval in zip(inputs, exported.in_avals, strict=True)]
        return tuple(np.asarray(value) for value in run(*wanted))

    return call


def _kind(spec: TensorSpec) -> Any:
    """XLA computes in 32 bits at most, as accelerators do."""
    kind = np.dtype(NUMPY_NAMES[spec.datatype])
    return {np.dtype(np.int64): np.int32, np.dtype(np.float64): np.float32}.get(kind, kind)


def _dimensions(spec: TensorSpec) -> list[str]:
    """``b`` for the batch, which all inputs share; others that are free have names of their own."""
    names = []
    for axis, size in enumerate(spec.shape):
        names.append(str(size) if size != -1 else "b" if axis == 0 else f"d{axis}")
    return names


class _Graph:
    """The graph's nodes, each as a function; made once, run while JAX traces."""

    def __init__(self, model: ModelProto, inputs: Sequence[str]) -> None:
        graph = model.graph
        self._inputs = inputs
        self._outputs = [output.name for output in graph.output]
        self._constants: dict[str, Any] = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        self._nodes = [(node, NodeFacts(node), self._operation(node)) for node in graph.node]
        self.float_operators: set[str] = set()

    def _operation(self, node: NodeProto) -> Operation | None:
        if node.op_type == "Constant":
            return None
        domain = "" if node.domain == "ai.onnx" else node.domain
        make, facts = _ALL.get((domain, node.op_type)), NodeFacts(node)
        if make is None:
            raise facts.refuse(f"operator {domain + '.' if domain else ''}{node.op_type} is not known")
        return make(facts)

    def run(self, *given: Value) -> tuple[Value, ...]:
        """Answer as the graph does, each output in order."""
        values: dict[str, Any] = {**self._constants, **dict(zip(self._inputs, given, strict=True)), "": None}
        for node, facts, operation in self._nodes:
            if operation is None:
                values[node.output[0]] = _constant(facts)
                continue
            try:
                found = self._answer(facts, operation, [values[name] for name in node.input])
            except (TypeError, ValueError, NotImplementedError, jax.errors.JAXTypeError) as error:
                raise facts.refuse(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
            many = found if isinstance(found, tuple) else (found,)
            for name, value in zip(node.output, many, strict=False):
                values[name] = value
        return tuple(jnp.asarray(_floats(values[name])) for name in self._outputs)

    def _answer(self, facts: NodeFacts, operation: Operation, inputs: list[Value]) -> Value:
        same = still_of_one_byte(facts, inputs, operation)
        if same is not None:
            return same
        if facts.node.op_type != "QuantizeLinear":
            inputs = [_floats(value) for value in inputs]
        found = operation(*inputs)
        if _computes_in_floats(facts.node, inputs):
            self.float_operators.add(facts.node.op_type)
        return found


_EXACT = {
    *(name for _, name in INTEGER_OPERATORS if name not in ("MatMulNBits", "DynamicQuantizeMatMul")),
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "Identity", "Concat"),
    *("Split", "Pad", "Tile", "Relu", "Clip", "MaxPool", "GlobalMaxPool", "Max", "Min", "Abs", "Neg", "Where", "Cast"),
    *("Equal", "Greater", "Less", "Not", "IsNaN", "ArgMax", "ArgMin", "ReduceMax", "ReduceMin", "Shape", "Dropout"),
    *("Floor", "Ceil", "Round", "Sign", "And", "Or", "ConstantOfShape", "Range", "LessOrEqual", "GreaterOrEqual"),
}
"""Of whole numbers, or without any rounding: no backend can answer otherwise."""


_ROUNDS = {"QLinearAveragePool"}
"""Of bytes, and yet by floats."""


def _computes_in_floats(node: NodeProto, inputs: Sequence[Value]) -> bool:
    if node.op_type in _ROUNDS:
        return True
    floats = [v for v in inputs if v is not None and not known(v) and np.dtype(v.dtype) in _FLOATS]
    return bool(floats) and node.op_type not in _EXACT


def _constant(facts: NodeFacts) -> np.ndarray[Any, Any]:
    for name in ("value", "value_float", "value_int", "value_floats", "value_ints"):
        value = facts.get(name)
        if value is not None:
            whole = name in ("value_int", "value_ints")
            kind = np.int64 if whole else np.float32
            return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.array(value, kind)
    raise facts.refuse("a constant that is no tensor")


def _floats(value: Value) -> Value:
    return value.floats() if isinstance(value, Looked) else value
