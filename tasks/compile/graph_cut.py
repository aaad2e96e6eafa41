"""An ONNX graph in two: at a tensor through which everything passes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import onnx
from onnx import ModelProto, NodeProto, TensorProto
from onnx.utils import Extractor

from tasks.running.errors import TargetUnsupported


@dataclass(frozen=True)
class GraphCut:
    """A place where a graph may be cut."""

    tensor: str
    row_bytes: int
    """What a row takes on its way from one half to the other."""
    before: int
    """Bytes of the constants that are needed before it."""
    after: int


def cuts(model: ModelProto) -> list[GraphCut]:
    """Every place where one tensor alone carries on what was computed, in the order of the graph.

    Bytes come first: of a quantized tensor the int8 form, which is a quarter of the traffic, and exact.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    graph = inferred.graph
    sizes = {i.name: _bytes(i.data_type, list(i.dims)) for i in graph.initializer}
    shapes = {v.name: v.type.tensor_type for v in (*graph.value_info, *graph.output, *graph.input)}
    nodes = list(graph.node)
    last = {name: number for number, node in enumerate(nodes) for name in node.input}
    last |= {output.name: len(nodes) for output in graph.output}
    live = {value.name for value in graph.input if value.name not in sizes}
    constant = set(sizes)
    found = []
    for number, node in enumerate(nodes):
        if all(name in constant or not name for name in node.input):
            constant |= set(node.output)  # a weight that is dequantized belongs to who uses it
            continue
        live |= set(node.output)
        live = {name for name in live if last.get(name, -1) > number}
        if len(live) == 1 and number < len(nodes) - 1:
            (tensor,) = live
            row = _row_bytes(shapes.get(tensor))
            if row and not any(output.name == tensor for output in graph.output):
                before, after = _weights(nodes, number, sizes, constant)
                found.append(GraphCut(tensor, row, before, after))
    return found


def best_cuts(found: list[GraphCut]) -> list[GraphCut]:
    """The most even ones first: the larger half as small as it can be; of equals the one that sends least."""
    return sorted(found, key=lambda cut: (round(max(cut.before, cut.after), -2), cut.row_bytes))


def halves(model: ModelProto, cut: GraphCut) -> tuple[ModelProto, ModelProto]:
    """The graph up to the tensor, and from it on."""
    extractor = Extractor(onnx.shape_inference.infer_shapes(model))
    constants = {i.name for i in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in constants]
    first = extractor.extract_model(inputs, [cut.tensor])
    second = extractor.extract_model([cut.tensor], [output.name for output in model.graph.output])
    return first, second


def require_cuts(found: list[GraphCut]) -> list[GraphCut]:
    """The cuts, if there are any.

    Raises:
        TargetUnsupported: nowhere does one tensor alone carry on.
    """
    if not found:
        raise TargetUnsupported(
            "target halves: nowhere in this graph is there a single tensor through which everything passes, so that it "
            "cannot be cut in two; two replicas of the whole are faster anyway where it fits"
        )
    return found


def _weights(nodes: list[NodeProto], number: int, sizes: dict[str, int], constant: set[str]) -> tuple[int, int]:
    """Bytes of constants that nodes up to this number need, and the later ones."""
    makers = {name: node for node in nodes for name in node.output if set(node.output) <= constant}
    used = [0, 0]
    for position, node in enumerate(nodes):
        if set(node.output) <= constant:
            continue
        side = int(position > number)
        for name in node.input:
            made = makers.get(name)
            used[side] += sum(sizes.get(part, 0) for part in (made.input if made is not None else [name]))
    return used[0], used[1]


def _row_bytes(kind: onnx.TypeProto.Tensor | None) -> int:
    """0 where the shape is not known."""
    if kind is None or not kind.HasField("shape"):
        return 0
    dims = [d.dim_value for d in kind.shape.dim][1:]
    return _bytes(kind.elem_type, dims) if all(dims) else 0


def _bytes(kind: int, dims: list[int]) -> int:
    bits = (
        4 if kind in (TensorProto.INT4, TensorProto.UINT4) else 8 * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
    )
    return prod(dims) * bits // 8
