"""Biases in fp32: fewer bytes, the same int8 operators, bit for bit the same answers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from model_registry.cpu_class import cpu_class, sums_saturate
from tasks.onnx_models.float_biases import float_biases
from tasks.onnx_models.onnx_graph import strip
from tasks.quantize.agreement import top_answers
from tasks.quantize.calibration import RowReader
from tasks.quantize.int8_static import quantize_statically
from tasks.quantize.prepared_graph import prepare

ROWS = {"image": np.random.default_rng(1).uniform(-2, 2, (32, 3, 8, 8)).astype(np.float32)}


def convolutions() -> ModelProto:
    """Conv, Relu, depthwise Conv, Conv, Relu, Flatten, Gemm; all with biases."""
    random = np.random.default_rng(0)
    shapes = {"w1": (16, 3, 3, 3), "w2": (16, 1, 3, 3), "w3": (24, 16, 1, 1), "w4": (5, 24 * 64)}
    tensors = [numpy_helper.from_array(random.normal(0, 0.2, s).astype(np.float32), n) for n, s in shapes.items()]
    for number, shape in enumerate(shapes.values(), start=1):
        tensors.append(numpy_helper.from_array(random.normal(0, 1, shape[0]).astype(np.float32), f"b{number}"))
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1], group=16),
        helper.make_node("Conv", ["c2", "w3", "b3"], ["c3"]),
        helper.make_node("Relu", ["c3"], ["r3"]),
        helper.make_node("Flatten", ["r3"], ["f"]),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["logits"], transB=1),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])
    graph = helper.make_graph(nodes, "g", [image], [logits], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def quantized(folder: Path, *, per_channel: bool = True, excluded: int | None = None) -> ModelProto:
    """``excluded``: which convolution stays in fp32."""
    prepared = prepare(convolutions().SerializeToString(), folder)
    layers = [node.name for node in prepared.graph.node if node.op_type == "Conv"]
    return quantize_statically(
        prepared,
        RowReader(ROWS),
        folder,
        method="minmax",
        percentile=99.99,
        per_channel=per_channel,
        reduce_range=sums_saturate(cpu_class()),
        activations="uint8",
        excluded=frozenset() if excluded is None else frozenset({layers[excluded]}),
    )


def run_by(data: bytes, folder: Path) -> Counter[str]:
    """Operators that ONNX Runtime runs the file with."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "loaded.onnx")
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load_model(folder / "loaded.onnx").graph.node)


def copy(model: ModelProto) -> ModelProto:
    other = ModelProto()
    other.CopyFrom(model)
    return other


@pytest.mark.parametrize("per_channel", [True, False])
def test_the_file_is_smaller_and_the_model_the_same(tmp_path: Path, per_channel: bool) -> None:
    before = quantized(tmp_path, per_channel=per_channel)
    after = copy(before)
    assert float_biases(after) == 3
    old, new = strip(before, merge_equal=True), strip(after, merge_equal=True)
    scales = 4 * (16 + 16 + 24) if per_channel else 3 * 4
    assert len(new) <= len(old) - scales
    assert run_by(new, tmp_path) == run_by(old, tmp_path)
    assert run_by(new, tmp_path)["QLinearConv"] == 3
    np.testing.assert_array_equal(top_answers(new, ROWS), top_answers(old, ROWS))


def test_the_bias_of_a_gemm_stays_in_int32(tmp_path: Path) -> None:
    model = quantized(tmp_path)
    float_biases(model)
    tensors = {i.name: i for i in model.graph.initializer}
    read = {n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    assert [tensors[n].dims[0] for n in read if n in tensors and tensors[n].data_type == TensorProto.INT32] == [5]


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_layer_left_in_fp32_stays_so(tmp_path: Path, layer: int) -> None:
    before = quantized(tmp_path, excluded=layer)
    after = copy(before)
    assert float_biases(after) == 2
    old, new = strip(before, merge_equal=True), strip(after, merge_equal=True)
    assert run_by(new, tmp_path) == run_by(old, tmp_path)
    np.testing.assert_array_equal(top_answers(new, ROWS), top_answers(old, ROWS))


def _bias_parts(model: ModelProto) -> tuple[TensorProto, TensorProto]:
    """Numbers and scale of the first convolution's bias."""
    conv = next(n for n in model.graph.node if n.op_type == "Conv")
    made = next(n for n in model.graph.node if n.output[0] == conv.input[2])
    tensors = {i.name: i for i in model.graph.initializer}
    return tensors[made.input[0]], tensors[made.input[1]]


def test_a_bias_that_would_be_rounded_otherwise_stays(tmp_path: Path) -> None:
    large, other = quantized(tmp_path), quantized(tmp_path)
    numbers, _ = _bias_parts(large)
    _set(numbers, numpy_helper.to_array(numbers) + 2**24 + 1)  # more digits than fp32 has
    assert float_biases(large) == 2
    _, scale = _bias_parts(other)
    _set(scale, numpy_helper.to_array(scale) * np.float32(1.5))  # not the product of the other two
    assert float_biases(other) == 2


def _set(tensor: TensorProto, values: NDArray[Any]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(numpy_helper.to_array(tensor).dtype), tensor.name))


def test_fp32_models_and_biases_of_two_layers_are_left_alone(tmp_path: Path) -> None:
    plain = convolutions()
    wanted = plain.SerializeToString()
    assert float_biases(plain) == 0
    assert plain.SerializeToString() == wanted
    shared = quantized(tmp_path)
    first, second = [n for n in shared.graph.node if n.op_type == "Conv"][:2]
    second.input[2] = first.input[2]
    assert float_biases(shared) == 1
