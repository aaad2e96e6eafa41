"""int8 rows for tables that are only looked up, as those of tokens and of positions: a quarter of their bytes.

A row has its own scale, and is a float again when it has been looked up: Gather, Cast, Mul. A table costs no time
whatever it is stored in, and rounding a row to 8 bits moves it by less than a hundredth; in the int8 forms of a small
encoder the fp32 table of tokens was two thirds of the file.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tasks.quantize.weight_only import round_channels

_LEAST = 1 << 12
"""Values of a table that is worth it."""


def round_tables(model: ModelProto) -> tuple[str, ...]:
    """Round them in place; labels of the tables, for people: ``Gather words.weight [30522, 384]``."""
    graph = model.graph
    tensors = {i.name: i for i in graph.initializer}
    users: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)
    kept = {value.name for value in graph.output}
    tables = {
        name: tensor
        for name, tensor in tensors.items()
        if tensor.data_type == TensorProto.FLOAT
        and len(tensor.dims) == 2
        and np.prod(tensor.dims) >= _LEAST
        and name not in kept
        and users[name]
        and all(_takes_rows(node, name, tensors) for node in users[name])
    }
    labels = tuple(f"{users[name][0].op_type} {name} {list(tensor.dims)}" for name, tensor in tables.items())
    nodes = list[NodeProto]()
    for node in graph.node:
        nodes += _in_float(node) if node.input and node.input[0] in tables else [node]
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    for name, tensor in tables.items():
        codes, scale = round_channels(numpy_helper.to_array(tensor), 0)
        graph.initializer.remove(tensor)
        graph.initializer.extend(
            [numpy_helper.from_array(codes, f"{name}_rows8"), numpy_helper.from_array(scale, f"{name}_row_scale")]
        )
    return labels


def _takes_rows(node: NodeProto, table: str, tensors: dict[str, TensorProto]) -> bool:
    """Whether the node takes rows of the table and nothing else of it."""
    if node.domain != "" or list(node.input).count(table) != 1 or node.input[0] != table:
        return False
    if node.op_type == "Gather":
        return not any(a.name == "axis" and a.i for a in node.attribute)
    if node.op_type != "Slice" or len(node.input) < 4 or node.input[3] not in tensors:
        return False
    return bool(numpy_helper.to_array(tensors[node.input[3]]).tolist() == [0])


def _in_float(node: NodeProto) -> list[NodeProto]:
    """The rows as before, from codes and scales."""
    table, rest, (output,) = node.input[0], list(node.input[1:]), node.output
    parts = {part: f"{output}_{part}" for part in ("codes", "floats", "scales")}
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}

    def taken(source: str, made: str) -> NodeProto:
        return helper.make_node(node.op_type, [source, *rest], [made], name=made, **attributes)

    return [
        taken(f"{table}_rows8", parts["codes"]),
        helper.make_node("Cast", [parts["codes"]], [parts["floats"]], name=parts["floats"], to=TensorProto.FLOAT),
        taken(f"{table}_row_scale", parts["scales"]),
        helper.make_node("Mul", [parts["floats"], parts["scales"]], [output], name=node.name),
    ]
