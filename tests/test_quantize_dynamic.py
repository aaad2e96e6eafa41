"""Dynamic int8: what its operators say is what runs, and a row is answered alike whatever is beside it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_models import save

from model_registry.cpu_class import cpu_class, sums_saturate
from model_registry.variant import TensorSpec
from serving.engine import Engine
from serving.engines.batch_certificate import certify
from tasks.onnx_models.onnx_graph import strip
from tasks.quantize.int8_dynamic import quantize_dynamically
from tasks.quantize.prepared_graph import prepare

ATTENTION = """<ir_version: 8, opset_import: ["" : %d]>
g (float[N, T, 64] x) => (float[N, T, 8] y)
{ q = MatMul(x, wq) k = MatMul(x, wk) s = Add(q, k) r = Relu(s) y = MatMul(r, wo) }"""


def attention(opset: int = 20) -> bytes:
    """Two products of one tensor, and one of what is never negative; sequences of any length."""
    model = onnx.parser.parse_model(ATTENTION % opset)
    draw = np.random.default_rng(1)
    for name, shape in (("wq", (64, 32)), ("wk", (64, 32)), ("wo", (32, 8))):
        weight = (draw.standard_normal(shape) / 8).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    data: bytes = model.SerializeToString()
    return data


def dynamically(file: bytes, folder: Path, **more: Any) -> ModelProto:
    settings = {"per_channel": True, "reduce_range": sums_saturate(cpu_class())} | more
    return quantize_dynamically(prepare(file, folder), **settings)


@pytest.mark.parametrize("opset", [13, 20])
def test_a_tensor_is_quantized_once_and_without_a_sign_where_it_has_none(tmp_path: Path, opset: int) -> None:
    quantized = dynamically(attention(opset), tmp_path)
    kinds = Counter(node.op_type for node in quantized.graph.node)
    assert (kinds["MatMulInteger"], kinds["ReduceMax"], kinds["Abs"]) == (3, 2, 1)
    zero_points = [len(node.input) for node in quantized.graph.node if node.op_type == "MatMulInteger"]
    assert zero_points == [3, 3, 2]


@pytest.mark.parametrize("reduce_range", [True, False])
def test_dynamic_int8_is_what_its_operators_say(tmp_path: Path, reduce_range: bool) -> None:
    """ONNX's own reference gives the same numbers, but where 16-bit sums saturate."""
    if sums_saturate(cpu_class()) and not reduce_range:
        pytest.skip("this CPU needs weights of 7 bits")
    file, data = attention(), strip(dynamically(attention(), tmp_path, reduce_range=reduce_range), merge_equal=True)
    x = np.random.default_rng(2).standard_normal((3, 5, 64)).astype(np.float32)
    (ours,), (floats,) = (onnxruntime.InferenceSession(one).run(None, {"x": x}) for one in (data, file))
    (told,) = ReferenceEvaluator(onnx.load_from_string(data)).run(None, {"x": x})
    assert np.abs(ours - told).max() < 1e-5
    assert np.abs(ours - floats).mean() < 0.03 * np.abs(floats).mean()


def test_a_rows_answer_in_dynamic_int8_depends_on_nothing_but_the_row(tmp_path: Path) -> None:
    session = onnxruntime.InferenceSession(strip(dynamically(attention(), tmp_path), merge_equal=True))
    x = np.random.default_rng(3).standard_normal((17, 6, 64)).astype(np.float32)
    x[3] *= 1e6  # a stranger's
    x[4] = 0
    alone = np.concatenate([session.run(None, {"x": row[None]})[0] for row in x])
    (together,) = session.run(None, {"x": x})
    tokens = np.stack([session.run(None, {"x": x[:, t : t + 1]})[0][:, 0] for t in range(6)], axis=1)
    assert together.tobytes() == alone.tobytes() == tokens.tobytes()
    assert not together[4].any()
    (floats,) = onnxruntime.InferenceSession(attention()).run(None, {"x": x})
    others = np.arange(17) != 3
    assert np.abs(together - floats)[others].mean() < 0.03 * np.abs(floats)[others].mean()


def test_requests_for_dynamic_int8_may_share_a_batch(tmp_path: Path) -> None:
    quantized = dynamically(attention(), tmp_path)
    x = TensorSpec(name="x", datatype="FP32", shape=(-1, -1, 64))
    y = TensorSpec(name="y", datatype="FP32", shape=(-1, -1, 8))
    variant = save(tmp_path / "v", quantized.graph.node, [x], [y], quantized.graph.initializer)
    found = certify(Engine(tmp_path / "v", variant), (tmp_path / "v" / "model.onnx").read_bytes())
    assert (found.kind, found.joins) == ("exact", True)


def test_one_scale_for_a_weight_or_one_for_each_column(tmp_path: Path) -> None:
    for per_channel, shapes in ((True, [(32,), (32,), (8,)]), (False, [(), (), ()])):
        graph = dynamically(attention(), tmp_path, per_channel=per_channel).graph
        assert [tuple(i.dims) for i in graph.initializer if i.name.endswith("_scale")] == shapes
