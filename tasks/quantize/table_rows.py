"""Small rows for tables that are only looked up, as those of tokens and positions: a quarter of the bytes, or less.

A row is a float again when it has been looked up, so a table costs next to no time whatever it is stored in; in the
int8 forms of a small encoder the fp32 table of tokens was two thirds of the file. 8 bits: a scale for each row, which
moves a value by less than a hundredth. 4 bits: a scale for each 32 values of a row, of six clipped ranges the one with
the least squared error; two values share a byte, the first half of a row its low bits. All in standard operators, which
refuse ids outside the table (GatherBlockQuantized of ONNX Runtime answers zeros for them).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tasks.onnx_models.onnx_graph import users_of
from tasks.quantize.weight_only import BLOCK, Array, round_blocks, round_channels

_LEAST = 1 << 12
"""Values of a table that is worth it."""
_CONSTANTS: dict[str, Array] = {
    "half_rows_mask": np.array(15, np.uint8),
    "half_rows_shift": np.array(4, np.uint8),
    "half_rows_middle": np.array(8, np.float32),
    "half_rows_blocks": np.array([-1, BLOCK], np.int64),
    "half_rows_scales": np.array([-1, 1], np.int64),
}


def round_tables(model: ModelProto, *, bits: int = 8) -> tuple[str, ...]:
    """Round them in place; labels of the tables, for people: ``Gather words.weight [30522, 384]``.

    Args:
        bits: 8 or 4; rows that are no multiple of 64 values have 8 all the same.
    """
    graph = model.graph
    tensors = {i.name: i for i in graph.initializer}
    users = users_of(graph)
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
    halved = {name for name, tensor in tables.items() if bits == 4 and tensor.dims[1] % (2 * BLOCK) == 0}
    nodes = list[NodeProto]()
    for node in graph.node:
        table = node.input[0] if node.input else ""
        nodes += [node] if table not in tables else _from_halves(node) if table in halved else _from_bytes(node)
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    for name, tensor in tables.items():
        values = numpy_helper.to_array(tensor)
        codes, scale = _packed(values) if name in halved else round_channels(values, 0)
        graph.initializer.remove(tensor)
        graph.initializer.extend(
            [numpy_helper.from_array(codes, f"{name}_rows"), numpy_helper.from_array(scale, f"{name}_row_scale")]
        )
    if halved:
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in _CONSTANTS.items())
    return labels


def _packed(values: Array) -> tuple[Array, Array]:
    """Two values in a byte [rows, columns / 2], and scales in fp16 [rows, columns / 32]."""
    codes, scales = round_blocks(np.ascontiguousarray(values.T))
    halves = np.split((codes.T + 8).astype(np.uint8), 2, axis=1)
    return halves[0] | halves[1] << 4, np.ascontiguousarray(scales.T).astype(np.float16)


def _takes_rows(node: NodeProto, table: str, tensors: dict[str, TensorProto]) -> bool:
    """Whether the node takes rows of the table and nothing else of it."""
    if node.domain != "" or list(node.input).count(table) != 1 or node.input[0] != table:
        return False
    if node.op_type == "Gather":
        return not any(a.name == "axis" and a.i for a in node.attribute)
    if node.op_type != "Slice" or len(node.input) < 4 or node.input[3] not in tensors:
        return False
    return bool(numpy_helper.to_array(tensors[node.input[3]]).tolist() == [0])


def _from_bytes(node: NodeProto) -> list[NodeProto]:
    """The rows as before, from codes and scales."""
    (output,) = node.output
    return [
        _taken(node, "rows"),
        _step("Cast", [f"{output}_rows"], f"{output}_floats", to=TensorProto.FLOAT),
        _taken(node, "row_scale"),
        _step("Mul", [f"{output}_floats", f"{output}_row_scale"], output),
    ]


def _from_halves(node: NodeProto) -> list[NodeProto]:
    """The same of packed rows: both values of a byte, times the scale of their 32."""
    (output,) = node.output
    low, high, both, shape = (f"{output}_{part}" for part in ("low", "high", "both", "shape"))
    return [
        _taken(node, "rows"),
        _step("BitwiseAnd", [f"{output}_rows", "half_rows_mask"], low),
        _step("BitShift", [f"{output}_rows", "half_rows_shift"], high, direction="RIGHT"),
        _step("Concat", [low, high], both, axis=-1),
        _step("Shape", [both], shape),
        _step("Cast", [both], f"{output}_cast", to=TensorProto.FLOAT),
        _step("Sub", [f"{output}_cast", "half_rows_middle"], f"{output}_floats"),
        _taken(node, "row_scale"),
        _step("Cast", [f"{output}_row_scale"], f"{output}_scales", to=TensorProto.FLOAT),
        _step("Reshape", [f"{output}_floats", "half_rows_blocks"], f"{output}_blocks"),
        _step("Reshape", [f"{output}_scales", "half_rows_scales"], f"{output}_factors"),
        _step("Mul", [f"{output}_blocks", f"{output}_factors"], f"{output}_scaled"),
        _step("Reshape", [f"{output}_scaled", shape], output),
    ]


def _taken(node: NodeProto, part: str) -> NodeProto:
    """The same rows of a table that stands beside the node's own."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    made = f"{node.output[0]}_{part}"
    inputs = [f"{node.input[0]}_{part}", *node.input[1:]]
    return helper.make_node(node.op_type, inputs, [made], name=made, **attributes)


def _step(operator: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(operator, inputs, [output], name=output, **attributes)
