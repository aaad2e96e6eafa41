"""Tables of tokens without the rows that hardly any text looks up.

A pretrained encoder knows 30 000 tokens, the texts of one task a third of them, and in a small encoder the table is
most of the file. Kept are the rows that training looked up, and the first ones of all others, as many as it takes until
held-out texts hardly miss any: tokenizers number the frequent tokens first. (With those of training alone, 3 900
docstrings, a MiniLM lost 2.6 points of accuracy.) What is looked up besides finds one row for all: the mean of those
that were dropped. Ids stay as they are, so that the tokenizer and whoever sends ids notice nothing; an id beyond the
table is refused as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tasks.onnx_models.onnx_graph import users_of

_MOST_UNKNOWN = 0.002
"""Share of the held-out ids that may be missing."""
_WORTH_IT = 0.9
"""Share of the rows that is looked up, above which the table stays as it is."""


@dataclass(frozen=True)
class TrimmedTable:
    """``table``: its name; ``input``: whose ids look its rows up; ``rows`` of which ``kept`` stay; ``unknown``: share
    of the ids of held-out rows that find the row for all others."""

    table: str
    input: str
    rows: int
    kept: int
    unknown: float


def trim_tables(
    model: ModelProto, seen: Mapping[str, NDArray[Any]], held_out: Mapping[str, NDArray[Any]]
) -> tuple[TrimmedTable, ...]:
    """Trim, in place, the tables that ids of the model's inputs look up.

    Args:
        seen: ids in training, by input. ``held_out``: other rows of the same inputs; without any, only what was seen is
            kept.
    """
    graph = model.graph
    tensors = {i.name: i for i in graph.initializer}
    users = users_of(graph)
    nodes, found = list(graph.node), list[TrimmedTable]()
    for name, tensor in tensors.items():
        source = _looked_up_by(users[name], name, tensor, seen)
        if source is None:
            continue
        rows, others = int(tensor.dims[0]), np.asarray(held_out.get(source, []), np.int64)
        kept = _kept(np.unique(np.asarray(seen[source], np.int64)), others)
        if not kept.size or kept[0] < 0 or kept[-1] >= rows or len(kept) >= _WORTH_IT * rows:
            continue
        values = numpy_helper.to_array(tensor)
        dropped = np.setdiff1d(np.arange(rows), kept)
        mean = values[dropped].mean(0, keepdims=True)
        tensor.CopyFrom(numpy_helper.from_array(np.vstack([values[kept], mean]), name))
        places = np.full(rows, len(kept), np.int32)
        places[kept] = np.arange(len(kept), dtype=np.int32)
        graph.initializer.append(numpy_helper.from_array(places, f"{name}_places"))
        for node in users[name]:
            place = f"{node.output[0]}_place"
            moved = helper.make_node("Gather", [f"{name}_places", node.input[1]], [place], name=place)
            node.input[1] = place
            nodes.insert(nodes.index(node), moved)
        unknown = float(np.isin(others, dropped).mean()) if others.size else 0.0
        found.append(TrimmedTable(name, source, rows, len(kept), unknown))
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    return tuple(found)


def _kept(seen: NDArray[np.int64], held_out: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those seen, and the first of all others until held-out texts miss few enough."""
    missing = np.sort(held_out[~np.isin(held_out, seen)], axis=None)
    allowed = int(_MOST_UNKNOWN * held_out.size)
    if len(missing) <= allowed:
        return seen
    first = missing[len(missing) - allowed - 1] + 1  # of what is allowed to be missing, the rarest: the last
    return np.union1d(seen, np.arange(first))


def _looked_up_by(
    nodes: list[NodeProto], table: str, tensor: TensorProto, seen: Mapping[str, NDArray[Any]]
) -> str | None:
    """The input whose ids are all that the table is looked up by."""
    if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2 or not nodes:
        return None
    for node in nodes:
        rows = not any(a.name == "axis" and a.i for a in node.attribute)
        if node.op_type != "Gather" or node.domain != "" or node.input[0] != table or not rows:
            return None
    sources = {node.input[1] for node in nodes}
    return sources.pop() if len(sources) == 1 and sources <= seen.keys() else None
