"""The ONNX file of a variant: stripped to what computes, and the same bytes for the same model.

Exporters and quantizers leave file paths, debug text, long names and shapes of intermediate tensors in a file. They
cost bytes (often more than the weights of a small int8 model), leak paths, and make equal models differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import get_args

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from model_registry.datatypes import NUMPY_NAMES, Datatype
from model_registry.variant import TensorSpec

_DATATYPES: dict[int, Datatype] = {
    onnx.helper.np_dtype_to_tensor_dtype(np.dtype(name)): datatype for datatype, name in NUMPY_NAMES.items()
}
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def users_of(graph: GraphProto) -> defaultdict[str, list[NodeProto]]:
    """Nodes by what they take, once for each time that they take it; none for what nobody takes."""
    users = defaultdict[str, list[NodeProto]](list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)
    return users


def strip(model: ModelProto, *, merge_equal: bool = False) -> bytes:
    """The smallest file that computes what the model computes; the input and output names stay.

    Args:
        merge_equal: let equal constants share one tensor. Only for finished files: a quantizer wants each bias its own.
    """
    stripped = ModelProto()
    stripped.CopyFrom(model)
    graph = stripped.graph
    _one_spelling(stripped)
    _drop_text(stripped)
    _drop_defaults(stripped)
    _constants_to_initializers(graph)
    _drop_dead(graph)
    if merge_equal:
        _merge_equal(graph)
    _order_initializers(graph)
    _rename(graph)
    used = {node.domain for node in _walk(graph)} | {node.domain for f in stripped.functions for node in f.node}
    imports = sorted((o.domain, o.version) for o in stripped.opset_import if o.domain in used)
    del stripped.opset_import[:]
    stripped.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in imports)
    onnx.checker.check_model(stripped)
    data: bytes = stripped.SerializeToString(deterministic=True)
    return data


def signature(model: ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of the model; symbolic dimensions are -1.

    Raises:
        ValueError: an input or output is no tensor, or of a datatype that cannot be served.
    """
    constants = {i.name for i in model.graph.initializer}  # old files list them among the inputs
    inputs = tuple(_spec(v) for v in model.graph.input if v.name not in constants)
    return inputs, tuple(_spec(v) for v in model.graph.output)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    datatype = _DATATYPES.get(kind.elem_type)
    if datatype is None:
        raise ValueError(
            f"tensor {value.name!r} of the ONNX file has element type {TensorProto.DataType.Name(kind.elem_type)}, "
            f"not one of {', '.join(get_args(Datatype))}; cast it inside the graph"
        )
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    return TensorSpec(name=value.name, datatype=datatype, shape=shape)


def _one_spelling(model: ModelProto) -> None:
    """The standard domain is "", though some files spell it out."""
    for part in [*model.opset_import, *_walk(model.graph)]:
        if part.domain == "ai.onnx":
            part.domain = ""


def _walk(graph: GraphProto) -> Iterator[NodeProto]:
    """Every node, those of branches and loop bodies included."""
    for node in graph.node:
        yield node
        for body in _bodies(node):
            yield from _walk(body)


def _bodies(node: NodeProto) -> list[GraphProto]:
    single = [a.g for a in node.attribute if a.type == AttributeProto.GRAPH]
    return single + [g for a in node.attribute if a.type == AttributeProto.GRAPHS for g in a.graphs]


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for body in _bodies(node):
            yield from _graphs(body)


def _drop_text(model: ModelProto) -> None:
    # Cleared, not set to "": protobuf writes a field that was set, empty or not.
    for field in ("producer_name", "producer_version", "domain", "model_version", "training_info"):
        model.ClearField(field)
    graphs = list(_graphs(model.graph))
    nodes = [n for f in model.functions for n in f.node] + list(_walk(model.graph))
    tensors = [t for g in graphs for t in g.initializer]
    values = [v for g in graphs for v in [*g.input, *g.output]]
    attributes = [a for n in nodes for a in n.attribute]
    for part in [model, *model.functions, *graphs, *nodes, *tensors, *values, *attributes]:
        part.ClearField("doc_string")
        if not isinstance(part, AttributeProto):
            part.ClearField("metadata_props")
    for node in nodes:
        node.ClearField("name")
    for graph in graphs:
        graph.name = "g"  # may not be empty
        graph.ClearField("value_info")
        graph.ClearField("quantization_annotation")


def _drop_defaults(model: ModelProto) -> None:
    """Attributes that say what the operator does anyway."""
    versions = {o.domain: o.version for o in model.opset_import}
    for node in _walk(model.graph):
        if node.domain != "":
            continue
        defined = onnx.defs.get_schema(node.op_type, versions[""], "").attributes
        kept = [
            a
            for a in node.attribute
            if a.name not in defined or not _is_default(a, node.op_type, defined[a.name].default_value)
        ]
        if len(kept) < len(node.attribute):
            copies = [AttributeProto.FromString(a.SerializeToString()) for a in kept]
            del node.attribute[:]
            node.attribute.extend(copies)


def _is_default(attribute: AttributeProto, op_type: str, default: AttributeProto) -> bool:
    if default.name:
        return bool(onnx.helper.get_attribute_value(attribute) == onnx.helper.get_attribute_value(default))
    if op_type.endswith(("Conv", "Pool")):  # defaults given in prose, since their length is the rank
        usual = {"strides": 1, "dilations": 1, "pads": 0}.get(attribute.name)
        return usual is not None and set(attribute.ints) == {usual}
    return False


def _constants_to_initializers(graph: GraphProto) -> None:
    """Constant nodes become initializers: shorter, and the same form whatever wrote the file."""
    for node in list(graph.node):
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and node.domain == "" and value is not None:
            tensor = graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
            graph.node.remove(node)
    outside = {i.name for i in graph.initializer}
    kept = [v for v in graph.input if v.name not in outside]
    del graph.input[:]
    graph.input.extend(kept)


def _drop_dead(graph: GraphProto) -> None:
    """Nodes and constants that no output needs."""
    needed = {v.name for v in graph.output}
    alive = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            alive.append(node)
            needed.update(_reads(node))
    if len(alive) < len(graph.node):
        kept = [NodeProto.FromString(n.SerializeToString()) for n in reversed(alive)]
        del graph.node[:]
        graph.node.extend(kept)
    constants = [i for i in graph.initializer if i.name in needed]
    _replace_initializers(graph, constants)


def _reads(node: NodeProto) -> Iterator[str]:
    yield from node.input
    for body in _bodies(node):
        yield from (v.name for v in body.output)
        for inner in body.node:
            yield from _reads(inner)


def _merge_equal(graph: GraphProto) -> None:
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    outputs = {v.name for v in graph.output}
    same: dict[str, str] = {}
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.name not in outputs and array.dtype != np.object_:
            same[tensor.name] = first.setdefault((tensor.data_type, tuple(tensor.dims), array.tobytes()), tensor.name)
    for node in _walk(graph):
        for index, name in enumerate(node.input):
            node.input[index] = same.get(name, name)
    _replace_initializers(graph, [i for i in graph.initializer if same.get(i.name, i.name) == i.name])


def _order_initializers(graph: GraphProto) -> None:
    """By first use, raw: tools list them in the order of a hash table."""
    order: dict[str, int] = {}
    for node in graph.node:
        for name in _reads(node):
            order.setdefault(name, len(order))
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.STRING and not tensor.HasField("raw_data"):
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), name))
    ordered = sorted(graph.initializer, key=lambda t: (order.get(t.name, len(order)), t.name))
    _replace_initializers(graph, ordered)


def _replace_initializers(graph: GraphProto, tensors: Iterable[TensorProto]) -> None:
    kept = []
    for tensor in tensors:
        copy = TensorProto()
        copy.CopyFrom(tensor)
        kept.append(copy)
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _rename(graph: GraphProto) -> None:
    """Short names, in order of first appearance; the graph's inputs and outputs keep theirs."""
    names = {v.name: v.name for v in [*graph.input, *graph.output]}
    taken = set(names)
    fresh = (name for name in _short_names() if name not in taken)

    def short(name: str) -> str:
        if name and name not in names:
            names[name] = next(fresh)
        return names[name] if name else ""

    def visit(part: GraphProto) -> None:
        for node in part.node:
            node.input[:] = [short(n) for n in node.input]
            for body in _bodies(node):
                for value in [*body.input, *body.initializer]:
                    value.name = short(value.name)
                visit(body)
                for value in body.output:
                    value.name = short(value.name)
            node.output[:] = [short(n) for n in node.output]

    visit(graph)
    for tensor in graph.initializer:
        tensor.name = short(tensor.name)


def _short_names() -> Iterator[str]:
    width = 1
    while True:
        for number in range(len(_LETTERS) ** width):
            name = ""
            for _ in range(width):
                number, digit = divmod(number, len(_LETTERS))
                name = _LETTERS[digit] + name
            yield name
        width += 1
