"""What layers inside a model answer: their outputs, averaged over rows, by channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, ValueInfoProto, helper

from tasks.quantize.calibration import Feeds

_BATCH = 16


def channel_axis(node: NodeProto) -> int:
    """Where the output channels of a layer are: second for Conv, last for products."""
    return 1 if node.op_type == "Conv" else -1


def channel_means(model: ModelProto, layers: list[NodeProto], feeds: Feeds) -> dict[str, NDArray[np.float64]]:
    """Mean and mean square of each layer's output over rows and positions, by node name.

    Args:
        model: nodes of the same names as ``layers`` are looked at; layers that it does not have are left out.
        feeds: raw inputs.

    Returns:
        float64 [2, channels] per layer: E[x] and E[x^2].
    """
    wanted = {node.name: node for node in layers}
    found = {n.name: n.output[0] for n in model.graph.node if n.name in wanted}
    session = onnxruntime.InferenceSession(
        _ending_at(model, list(found.values())).SerializeToString(), _quiet(), providers=["CPUExecutionProvider"]
    )
    taken = {i.name for i in session.get_inputs()}
    rows = len(next(iter(feeds.values())))
    totals: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    for start in range(0, rows, _BATCH):
        batch = {n: v[start : start + _BATCH] for n, v in feeds.items() if n in taken}
        for name, output in zip(found, session.run(list(found.values()), batch), strict=True):
            flat = np.moveaxis(output.astype(np.float64), channel_axis(wanted[name]), 0)
            flat = flat.reshape(flat.shape[0], -1)
            sums = np.stack([flat.sum(axis=1), np.square(flat).sum(axis=1)])
            totals[name] = totals.get(name, 0.0) + sums
            counts[name] = counts.get(name, 0) + flat.shape[1]
    return {name: total / counts[name] for name, total in totals.items()}


def _ending_at(model: ModelProto, names: list[str]) -> ModelProto:
    """The part of the graph that computes these tensors, which become its outputs."""
    part = ModelProto()
    part.CopyFrom(model)
    graph = part.graph
    needed: set[str] = set(names)
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(NodeProto.FromString(node.SerializeToString()))
            needed.update(node.input)
            needed.update(v for a in node.attribute for inner in a.g.node for v in inner.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    del graph.value_info[:]
    known: dict[str, ValueInfoProto] = {v.name: v for v in graph.output}
    outputs: list[Any] = [known.get(n) or helper.make_empty_tensor_value_info(n) for n in names]
    outputs = [ValueInfoProto.FromString(v.SerializeToString()) for v in outputs]
    del graph.output[:]
    graph.output.extend(outputs)
    return part


def _quiet() -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options
