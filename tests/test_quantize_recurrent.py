"""Weights of recurrent operators are a byte each in every quantized form, and ONNX Runtime folds them on loading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_quantize import operators_run

from model_registry.cpu_class import cpu_class, sums_saturate
from tasks.onnx_models.onnx_graph import strip
from tasks.quantize.agreement import agree, top_answers
from tasks.quantize.int8_dynamic import quantize_dynamically
from tasks.quantize.prepared_graph import prepare
from tasks.quantize.recurrent_weights import round_recurrent_weights
from tasks.quantize.weight_only import quantize_weights, runs_as_float

GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
FEEDS = {"x": np.random.default_rng(0).normal(size=(5, 8, 16)).astype(np.float32)}  # 5 steps of 8 samples


def network(operator: str) -> bytes:
    """Two directions of 32 units, and a product of the steps."""
    random, gates = np.random.default_rng(1), GATES[operator]
    constants = {
        "w": random.normal(size=(2, gates * 32, 16)) * 0.2,
        "r": random.normal(size=(2, gates * 32, 32)) * 0.2,
        "dense": random.normal(size=(32, 3)),
    }
    nodes = [
        helper.make_node(operator, ["x", "w", "r"], ["steps"], direction="bidirectional", hidden_size=32),
        helper.make_node("ReduceMean", ["steps", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "dense"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    tensors.append(numpy_helper.from_array(np.array([0, 1]), "axes"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["steps", "batch", 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "reader", [x], [y], tensors)
    data: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    ).SerializeToString()
    onnxruntime.InferenceSession(data)
    return data


@pytest.mark.parametrize("operator", list(GATES))
def test_recurrent_weights_are_bytes_in_the_file_and_floats_when_it_runs(operator: str, tmp_path: Path) -> None:
    file = network(operator)
    prepared = prepare(file, tmp_path)
    for quantized in (
        quantize_weights(prepared, bits=8),
        quantize_dynamically(prepared, per_channel=True, reduce_range=sums_saturate(cpu_class())),
    ):
        (label,) = round_recurrent_weights(quantized)
        assert label == f"{operator} w [2, {GATES[operator] * 32}, 16]"
        data = strip(quantized, merge_equal=True)
        assert len(data) < 0.55 * len(file)
        agreed = agree(top_answers(file, FEEDS), top_answers(data, FEEDS))
        assert 0 < agreed.error < 0.03
        ran = operators_run(data, tmp_path)
        assert ran.get("Cast", 0) == 2 * ran.get("MatMulInteger", 0), "those of the product after it alone"
    assert runs_as_float(quantize_weights(prepared, bits=8))


def test_a_graph_without_recurrent_layers_stays_as_it_is(tmp_path: Path) -> None:
    model = onnx.load_from_string(network("GRU"))
    del model.graph.node[0]
    before = model.SerializeToString(deterministic=True)
    assert round_recurrent_weights(model) == ()
    assert model.SerializeToString(deterministic=True) == before
