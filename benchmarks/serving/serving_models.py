"""The models of the serving benchmark, as ONNX files with random weights: what they answer does not matter to it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import orjson
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_registry.manifest import describe_folder
from model_registry.variant import TensorSpec, Variant


@dataclass(frozen=True)
class ServedModel:
    """A model: ``input`` and the ``shape`` of a row of it, FP32; it answers ``logits`` [N, 10]."""

    name: str
    input: str
    shape: tuple[int, ...]

    def row(self) -> NDArray[np.float32]:
        """A request's only row, the same each time: [1, ...]."""
        drawn = np.random.default_rng(0).standard_normal((1, *self.shape)).astype(np.float32)
        rounded: NDArray[np.float32] = np.round(drawn, 4)  # as people send them
        return rounded

    def json_body(self) -> bytes:
        row = self.row()
        tensor = {"name": self.input, "shape": list(row.shape), "datatype": "FP32"}
        numbers = [round(value, 4) for value in row.ravel().tolist()]
        return orjson.dumps({"inputs": [{**tensor, "data": numbers}]})

    def binary_body(self) -> tuple[bytes, int]:
        """The body, and the bytes of its JSON part."""
        raw = self.row().tobytes()
        tensor: dict[str, Any] = {"name": self.input, "shape": [1, *self.shape], "datatype": "FP32"}
        tensor["parameters"] = {"binary_data_size": len(raw)}
        head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
        return head + raw, len(head)

    def write(self, folder: Path, number: int | None = None) -> Variant:
        """``model.onnx`` in the folder, and the variant that describes it.

        Args:
            number: what each of its logits then is; it computes as much as without.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.onnx").write_bytes(_numbered(_MAKERS[self.name](self), number))
        return Variant(
            name=self.name,
            stage="export",
            format="onnx",
            files=describe_folder(folder),
            inputs=(TensorSpec(name=self.input, datatype="FP32", shape=(-1, *self.shape)),),
            outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, 10)),),
        )


def _model(made: ServedModel, nodes: list[Any], weights: list[Any]) -> bytes:
    graph = helper.make_graph(
        nodes,
        made.name,
        [helper.make_tensor_value_info(made.input, TensorProto.FLOAT, ["N", *made.shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        weights,
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def _numbered(model: bytes, number: int | None) -> bytes:
    if number is None:
        return model
    parsed = onnx.load_model_from_string(model)
    parsed.graph.node[-1].output[0] = "found"
    parsed.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(value, np.float32), name)
            for name, value in (("zero", 0), ("number", number))
        ]
    )
    parsed.graph.node.append(helper.make_node("Mul", ["found", "zero"], ["nothing"]))
    parsed.graph.node.append(helper.make_node("Add", ["nothing", "number"], ["logits"]))
    return bytes(parsed.SerializeToString())


def _mlp(made: ServedModel) -> bytes:
    """64-64-32-10 with ReLU."""
    draw, nodes, weights, value = np.random.default_rng(1), list[Any](), list[Any](), made.input
    sizes = (*made.shape, 64, 32, 10)
    for number, (before, after) in enumerate(itertools.pairwise(sizes)):
        matrix = draw.standard_normal((before, after)).astype(np.float32) / math.sqrt(before)
        weights += [numpy_helper.from_array(matrix, f"w{number}")]
        weights += [numpy_helper.from_array(np.zeros(after, np.float32), f"b{number}")]
        last = number == len(sizes) - 2
        nodes.append(
            helper.make_node("Gemm", [value, f"w{number}", f"b{number}"], ["logits" if last else f"h{number}"])
        )
        if not last:
            nodes.append(helper.make_node("Relu", [f"h{number}"], [f"r{number}"]))
            value = f"r{number}"
    return _model(made, nodes, weights)


def _cnn(made: ServedModel) -> bytes:
    """Three stages of two 3x3 convolutions each, of 16, 32 and 64 channels; each stage halves the resolution."""
    draw, nodes, weights, value = np.random.default_rng(2), list[Any](), list[Any](), made.input
    before = made.shape[0]
    for number, (after, stride) in enumerate(((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1))):
        kernel = draw.standard_normal((after, before, 3, 3)).astype(np.float32) / math.sqrt(9 * before)
        weights.append(numpy_helper.from_array(kernel, f"k{number}"))
        conv: dict[str, Any] = {"pads": [1, 1, 1, 1], "strides": [stride, stride]}
        nodes.append(helper.make_node("Conv", [value, f"k{number}"], [f"c{number}"], **conv))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"]))
        value, before = f"r{number}", after
    matrix = draw.standard_normal((before, 10)).astype(np.float32) / math.sqrt(before)
    weights.append(numpy_helper.from_array(matrix, "w"))
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "w"], ["logits"]))
    return _model(made, nodes, weights)


def _deep(made: ServedModel, layers: int) -> bytes:
    """3x3 convolutions of 128 channels on a small image with a wide frame: short bodies, much to compute, and no less
    of it for each row of a batch."""
    draw, nodes, weights, value, before = np.random.default_rng(4), list[Any](), list[Any](), made.input, made.shape[0]
    for number in range(layers):
        kernel = draw.standard_normal((128, before, 3, 3)).astype(np.float32) / math.sqrt(9 * before)
        weights.append(numpy_helper.from_array(kernel, f"k{number}"))
        nodes.append(helper.make_node("Conv", [value, f"k{number}"], [f"c{number}"], pads=[1 if number else 5] * 4))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"]))
        value, before = f"r{number}", 128
    matrix = draw.standard_normal((before, 10)).astype(np.float32) / math.sqrt(before)
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "w"], ["logits"]))
    return _model(made, nodes, [*weights, numpy_helper.from_array(matrix, "w")])


def _pooled(made: ServedModel) -> bytes:
    """Hardly any computing: what is measured is the way there."""
    matrix = np.random.default_rng(3).standard_normal((made.shape[0], 10)).astype(np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", [made.input], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    return _model(made, nodes, [numpy_helper.from_array(matrix, "w")])


MODELS = {
    model.name: model
    for model in (
        ServedModel("mlp", "input", (64,)),
        ServedModel("cnn", "image", (3, 32, 32)),
        ServedModel("image", "image", (3, 224, 224)),
        ServedModel("deep", "image", (1, 8, 8)),
        ServedModel("shallow", "image", (1, 8, 8)),
    )
}
_MAKERS: dict[str, Callable[[ServedModel], bytes]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "image": _pooled,
    "deep": partial(_deep, layers=10),
    "shallow": partial(_deep, layers=3),
}
