"""Int8: what is quantized and what not, that ONNX Runtime really runs it in int8, calibration rows, refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization.calibrate import load_tensors_data

from model_registry.cpu_class import cpu_class, sums_saturate
from tasks.onnx_models.onnx_cost import onnx_cost
from tasks.onnx_models.onnx_graph import strip
from tasks.quantize.agreement import agree, top_answers
from tasks.quantize.calibration import Feeds, RowReader, check_finite, choose_rows
from tasks.quantize.int8_dynamic import quantize_dynamically
from tasks.quantize.int8_share import int8_share
from tasks.quantize.int8_static import quantize_statically
from tasks.quantize.prepared_graph import prepare, why_not
from tasks.running.errors import CalibrationError

SHAPES = {"image": (1, 1, 8, 8)}


def rows(count: int = 64) -> Feeds:
    return {"image": np.random.default_rng(1).uniform(0, 16, (count, 1, 8, 8)).astype(np.float32)}


def network(*nodes: str, opset: int = 20, dense: bool = True, attention: bool = False) -> bytes:
    """Div, Conv, BatchNorm, Relu, MaxPool, Conv, Relu and, if dense, Flatten, Gemm, Relu, Gemm; with stale shapes."""
    random = np.random.default_rng(0)
    weights: dict[str, NDArray[Any]] = {
        "scale": np.array(16, np.float32),
        "w1": random.normal(0, 0.3, (8, 1, 3, 3)),
        "b1": random.normal(0, 0.1, 8),
        "gamma": random.uniform(0.5, 1.5, 8),
        "beta": random.normal(0, 0.1, 8),
        "mean": random.normal(0, 0.1, 8),
        "var": random.uniform(0.5, 1.5, 8),
        "w2": random.normal(0, 0.1, (16, 8, 3, 3)),
        "b2": random.normal(0, 0.1, 16),
        "w3": random.normal(0, 0.06, (32, 256)),
        "b3": random.normal(0, 0.1, 32),
        "w4": random.normal(0, 0.2, (10, 32)),
        "b4": random.normal(0, 0.1, 10),
    }
    layers = [
        helper.make_node("Div", ["image", "scale"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], doc_string="/home/me/model.py"),
        helper.make_node("BatchNormalization", ["c1", "gamma", "beta", "mean", "var"], ["n1"]),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2" if dense else "logits"]),
    ]
    if dense:
        layers += [
            helper.make_node("Flatten", ["r2"], ["f"]),
            helper.make_node("Gemm", ["f", "w3", "b3"], ["g1"], transB=1),
            helper.make_node("Relu", ["g1"], ["r3"]),
            helper.make_node("Gemm", ["r3", "w4", "b4"], ["logits"], transB=1),
        ]
    used = {name for node in layers for name in node.input}
    shape: list[str | int | None] = ["batch", 10] if dense else ["batch", 16, 4, 4]
    graph = helper.make_graph(
        layers,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items() if k in used],
        value_info=[helper.make_tensor_value_info("w3", TensorProto.FLOAT, [256, 32])] if dense else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def statically(file: bytes, folder: Path, **kwargs: Any) -> tuple[ModelProto, ModelProto]:
    prepared = prepare(file, folder)
    options = {
        "method": "minmax",
        "percentile": 99.9,
        "per_channel": True,
        "reduce_range": sums_saturate(cpu_class()),
        "activations": "uint8",
    }
    return prepared, quantize_statically(prepared, RowReader(rows()), folder, **{**options, **kwargs})


def operators_run(data: bytes, folder: Path) -> dict[str, int]:
    """What ONNX Runtime makes of the file, counted by operator."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    found: dict[str, int] = {}
    for node in onnx.load(folder / "optimized.onnx").graph.node:
        found[node.op_type] = found.get(node.op_type, 0) + 1
    return found


@pytest.mark.parametrize(("method", "error"), [("minmax", 0.1), ("percentile", 0.1), ("entropy", 0.2)])
def test_static_int8_runs_in_int8_and_answers_alike(tmp_path: Path, method: str, error: float) -> None:
    file = network()
    prepared, quantized = statically(file, tmp_path, method=method)
    data = strip(quantized, merge_equal=True)
    share = int8_share(prepared, quantized, SHAPES)
    assert (share.quantized, share.quantizable, share.share, share.fp32_layers) == (4, 4, 1.0, ())
    ran = operators_run(data, tmp_path)
    assert (ran["QLinearConv"], ran["QGemm"]) == (2, 2)
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm", "DequantizeLinear"} & ran.keys()
    found = agree(top_answers(file, rows()), top_answers(data, rows()))
    assert found.agreement is not None and found.agreement > 0.85
    assert found.error < error
    assert len(data) < 0.4 * len(strip(onnx.load_from_string(file)))


def test_entropy_chooses_among_ranges(tmp_path: Path) -> None:
    """ONNX Runtime's own setting has as many bins as levels, hence one range: that of minmax."""

    def spans(method: str) -> dict[str, float]:
        statically(network(), tmp_path, method=method, ranges=tmp_path / f"{method}.json")
        found = load_tensors_data(tmp_path / f"{method}.json")
        return {name: float(np.ptp(np.ravel(r.range_value))) for name, r in found.items()}

    whole, chosen = spans("minmax"), spans("entropy")
    assert whole.keys() == chosen.keys()
    assert all(chosen[name] <= whole[name] * 1.001 for name in whole)
    assert min(chosen[name] / whole[name] for name in whole) < 0.9


def test_the_file_is_stripped_deterministic_and_free_of_stale_shapes(tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        _, quantized = statically(network(), tmp_path / name)
        files.append(strip(quantized, merge_equal=True))
    assert files[0] == files[1]
    model = onnx.load_from_string(files[0])
    assert not model.graph.value_info and not model.metadata_props
    assert b"/home/me" not in files[0] and str(tmp_path).encode() not in files[0]
    assert max(len(i.name) for i in model.graph.initializer) <= 2


def test_weights_keep_to_seven_bits_where_sums_saturate(tmp_path: Path) -> None:
    largest = {}
    for reduce_range in (False, True):
        _, quantized = statically(network(), tmp_path, reduce_range=reduce_range)
        weights = [numpy_helper.to_array(i) for i in quantized.graph.initializer if i.data_type == TensorProto.INT8]
        largest[reduce_range] = max(int(np.abs(w.astype(int)).max()) for w in weights)
    assert largest == {False: 127, True: 64}


def test_per_channel_gives_each_output_its_scale(tmp_path: Path) -> None:
    sizes = {}
    for per_channel in (False, True):
        _, quantized = statically(network(), tmp_path, per_channel=per_channel)
        scales = {n.input[1] for n in quantized.graph.node if n.op_type == "DequantizeLinear"}
        sizes[per_channel] = {
            tuple(i.dims) for i in quantized.graph.initializer if i.name in scales and list(i.dims) not in ([], [1])
        }
    assert sizes == {False: set(), True: {(8,), (16,), (32,), (10,)}}


def test_dynamic_int8_takes_products_and_never_convolutions(tmp_path: Path) -> None:
    file = network()
    prepared = prepare(file, tmp_path)
    quantized = quantize_dynamically(prepared, per_channel=True, reduce_range=sums_saturate(cpu_class()))
    share = int8_share(prepared, quantized, SHAPES)
    assert (share.quantized, share.quantizable) == (2, 4)
    assert share.fp32_layers == (
        "Conv ConvBnFusion_W_w1 [8, 1, 3, 3]",
        "Conv w2 [16, 8, 3, 3]",
    )
    products, convolutions = 8192 + 320, 4608 + 18432
    assert share.share == pytest.approx(products / (products + convolutions))
    data = strip(quantized, merge_equal=True)
    ran = operators_run(data, tmp_path)
    assert ran["MatMulInteger"] == 2 and "ConvInteger" not in ran
    assert agree(top_answers(file, rows()), top_answers(data, rows())).error < 0.1


def test_parameters_and_macs_are_those_of_the_parent(tmp_path: Path) -> None:
    prepared, static = statically(network(), tmp_path)
    dynamic = quantize_dynamically(prepared, per_channel=True, reduce_range=sums_saturate(cpu_class()))
    wanted = onnx_cost(prepared, SHAPES)
    assert wanted.macs == 4608 + 18432 + 8192 + 320
    assert wanted.parameters == 80 + 1168 + 8224 + 330
    for quantized in (static, dynamic):
        assert onnx_cost(onnx.load_from_string(strip(quantized, merge_equal=True))) == wanted


def test_why_a_method_would_give_nothing(tmp_path: Path) -> None:
    convolutions = prepare(network(dense=False), tmp_path)
    assert why_not(convolutions, "static") == ""
    assert why_not(convolutions, "dynamic").startswith("the graph has no Gemm or MatMul with constant weights")
    _, quantized = statically(network(), tmp_path)
    again = prepare(strip(quantized), tmp_path)
    assert "quantized already (DequantizeLinear, QuantizeLinear)" in why_not(again, "static")
    text = '<ir_version: 8, opset_import: ["" : 20]> g (float[N, 2] x) => (float[N, 2] y) { y = Sigmoid(x) }'
    nothing = prepare(onnx.parser.parse_model(text).SerializeToString(), tmp_path)
    assert why_not(nothing, "static") == "the graph has no Conv, Gemm or MatMul with constant weights"


def test_products_of_activations_stay_in_float(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 20]>
    g (float[N, 4, 4] image) => (float[N, 4, 4] scores)
    <float[4, 4] query = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}>
    { q = MatMul(image, query) k = Transpose<perm = [0, 2, 1]>(q) scores = MatMul(q, k) }"""
    prepared = prepare(onnx.parser.parse_model(text).SerializeToString(), tmp_path)
    reader = RowReader({"image": np.random.default_rng(0).normal(size=(32, 4, 4)).astype(np.float32)})
    quantized = quantize_statically(
        prepared,
        reader,
        tmp_path,
        method="minmax",
        percentile=99.9,
        per_channel=False,
        reduce_range=sums_saturate(cpu_class()),
        activations="uint8",
    )
    share = int8_share(prepared, quantized, {"image": (1, 4, 4)})
    assert (share.quantized, share.quantizable) == (1, 1)
    products = [n for n in quantized.graph.node if n.op_type == "MatMul"]
    made = {n.output[0]: n.op_type for n in quantized.graph.node}
    assert [[made.get(name, name) for name in n.input] for n in products] == [
        ["DequantizeLinear", "DequantizeLinear"],
        ["MatMul", "Transpose"],
    ]
    ran = operators_run(strip(quantized), tmp_path)
    assert ran["MatMulIntegerToFloat"] == 1 and "QLinearMatMul" not in ran


def test_an_old_opset_is_brought_forward(tmp_path: Path) -> None:
    prepared, quantized = statically(network(opset=11), tmp_path)
    assert next(o.version for o in prepared.opset_import if o.domain == "") >= 13
    assert int8_share(prepared, quantized, SHAPES).quantized == 4
    assert operators_run(strip(quantized), tmp_path)["QGemm"] == 2


def test_rows_are_drawn_evenly_over_the_classes() -> None:
    targets = np.repeat([0, 1, 2], [200, 60, 10])
    chosen = choose_rows(targets, 48, stratify=True, seed=0)
    assert np.bincount(targets[chosen]).tolist() == [19, 19, 10]
    assert sorted(set(chosen.tolist())) == chosen.tolist()
    assert np.array_equal(chosen, choose_rows(targets, 48, stratify=True, seed=0))
    assert not np.array_equal(chosen, choose_rows(targets, 48, stratify=True, seed=1))
    assert len(choose_rows(targets, 1000, stratify=True, seed=0)) == 256
    assert len(choose_rows(np.random.default_rng(0).normal(size=50), 32, stratify=True, seed=0)) == 32


def test_too_few_or_broken_rows_are_refused() -> None:
    with pytest.raises(CalibrationError, match="the calibration split has 15 rows; at least 16 are needed"):
        choose_rows(np.zeros(15, np.int64), 256, stratify=True, seed=0)
    found = np.zeros((4, 10))
    found[[1, 3], 0] = [np.nan, np.inf]
    with pytest.raises(CalibrationError, match=r"infinity for 2 of the 4 calibration rows, first rows \[20, 40\]"):
        check_finite(found, np.array([10, 20, 30, 40]))


def test_the_child_starts_without_torch_or_prefect() -> None:
    script = (
        "import sys, tasks.running.child; tasks.running.child._skip_stage_packages(); "
        "import tasks.quantize.quantize_child; "
        "print([m for m in ('torch', 'prefect', 'sympy', 'mlflow') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
