"""The symmetric form: what accelerators ask of the file, and that it answers digits as well as the static one."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

from tasks.quantize.agreement import top_answers
from tasks.quantize.quantized_forms import FormBuilder, QuantizedForm, Quantizing
from tasks.workloads.sample_scores import accuracy_scores

CALIBRATION = 256
PADDED = [1, 1, 1, 1]


@cache
def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    found = load_digits()
    return (found.images / 8 - 1).astype(np.float32)[:, None], found.target.astype(np.int64)


@cache
def network() -> bytes:
    """Two convolutions of random filters, and a last layer that least squares found on half of the digits."""
    random, (images, targets) = np.random.default_rng(0), digits()
    weights: dict[str, NDArray[Any]] = {
        "w1": random.normal(0, 0.4, (12, 1, 3, 3)),
        "b1": random.normal(0, 0.2, 12),
        "w2": random.normal(0, 0.15, (24, 12, 3, 3)),
        "b2": random.normal(0, 0.2, 24),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], pads=PADDED),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], pads=PADDED),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
    ]
    session = onnxruntime.InferenceSession(_file(nodes, weights, "f", 384), providers=["CPUExecutionProvider"])
    (features,) = session.run(None, {"image": images[::2]})
    ridge = np.hstack([features, np.ones((len(features), 1))]).astype(np.float64)
    wanted = np.eye(10)[targets[::2]]
    found = np.linalg.solve(ridge.T @ ridge + 10 * np.eye(ridge.shape[1]), ridge.T @ wanted)
    weights |= {"w3": found[:-1].T, "b3": found[-1]}
    nodes.append(helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], transB=1))
    return _file(nodes, weights, "logits", 10)


def _file(nodes: list[NodeProto], weights: dict[str, NDArray[Any]], output: str, width: int) -> bytes:
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def made(folder: Path, *, scales: str = "any", bias_correction: bool = False) -> dict[str, QuantizedForm]:
    """The static and the symmetric form, by method."""
    feeds = {"image": digits()[0][:CALIBRATION]}
    quantizing = Quantizing(
        methods=("static", "symmetric"),
        calibration_method="minmax",
        percentile=99.99,
        per_channel=True,
        scales=scales,
        equalize=False,
        bias_correction=bias_correction,
        tables=8,
    )
    builder = FormBuilder(network(), feeds, top_answers(network(), feeds), quantizing, folder=folder)
    forms = {form.method: form for form in builder.forms(lambda fraction, text: None)}
    assert builder.notes["skipped"] == {} and builder.notes["warnings"] == []
    assert bias_correction == ("bias_correction" in builder.notes["symmetric"])
    return forms


def what_accelerators_refuse(model: ModelProto) -> list[str]:
    """Zero points that are not 0, types other than int8, biases that are quantized, two roundings around a ReLU."""
    tensors = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    wrong = []
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and tensors[node.input[2]].dtype != np.int8:
            wrong.append("another type")
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            if len(node.input) > 2 and tensors[node.input[2]].any():
                wrong.append("a zero point")
            if node.input[0] in tensors and tensors[node.input[0]].dtype == np.int32:
                wrong.append("a quantized bias")
        if node.op_type == "Relu" and makers[node.input[0]].op_type == "DequantizeLinear":
            wrong.append("a sum that is rounded before its ReLU")
    return wrong


@pytest.mark.parametrize(("scales", "bias_correction"), [("any", False), ("any", True), ("power_of_two", False)])
def test_the_file_is_as_accelerators_take_it(tmp_path: Path, scales: str, bias_correction: bool) -> None:
    forms = made(tmp_path, scales=scales, bias_correction=bias_correction)
    model = onnx.load_from_string(forms["symmetric"].data)
    assert what_accelerators_refuse(model) == []
    found = set(what_accelerators_refuse(onnx.load_from_string(forms["static"].data)))
    assert found >= {"another type", "a zero point", "a quantized bias"}  # else nothing was looked at
    weights = [i for i in model.graph.initializer if i.data_type == TensorProto.INT8 and len(i.dims) > 1]
    layers = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
    assert len(weights) == len(layers) == 3 and all(len(n.input) == 3 for n in layers)
    facts = forms["symmetric"].facts
    assert (facts["quantized"], facts["share"], forms["symmetric"].any_cpu) == (3, 1.0, False)


def test_it_answers_digits_as_well_as_the_static_form(tmp_path: Path) -> None:
    images, targets = digits()
    files = {"fp32": network()} | {name: form.data for name, form in made(tmp_path).items()}
    right = {
        name: float(accuracy_scores(top_answers(file, {"image": images[1::2]}), targets[1::2]).mean())
        for name, file in files.items()
    }
    assert right["fp32"] > 0.95
    assert right["static"] > right["fp32"] - 0.02 and right["symmetric"] > right["fp32"] - 0.02, right
