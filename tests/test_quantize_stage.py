"""The quantize stage with everything it can do: forms and their names, what it reports, what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from digits_world import store_splits
from measured_models import blobs, make_job
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from model_registry.cpu_class import cpu_class
from model_registry.store import Store
from model_registry.variant import TensorSpec, Variant
from tasks.quantize import AccuracyControl, QuantizeSpec, quantize
from tasks.running.launch import kept_processes
from tasks.running.splits import DataRef
from tasks.running.stage import Job
from tasks.running.stage_plan import Plan, planning

HIDDEN = 16


@pytest.fixture
def job(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    with kept_processes():
        yield make_job(store, tmp_path)


def splits(store: Store, **scales: float) -> DataRef:
    counts = {"train": 400, "calibration": 96, "validation": 300, "test": 30}
    made: dict[str, Any] = {name: blobs(count, seed) for seed, (name, count) in enumerate(counts.items())}
    for name, scale in scales.items():
        made[name]["features"] *= np.float32(scale)
    return store_splits(store, made)


def classifier(store: Store) -> Variant:
    """Three Gemm that answer the blobs well; the second has a huge weight on a channel that is always zero."""
    random = np.random.default_rng(0)
    first = random.normal(0, 1, (HIDDEN, 4))
    middle = np.eye(HIDDEN) + random.normal(0, 0.02, (HIDDEN, HIDDEN))
    last = np.linalg.lstsq(np.maximum(blobs(3000, 9)["features"] * 2 @ first.T, 0), np.eye(3)[np.arange(3000) % 3])[0].T
    bias = np.zeros(HIDDEN)
    bias[0] = -1000.0
    middle[:, 0] = 3000.0
    weights = {"w1": first, "b1": bias, "w2": middle, "b2": np.zeros(HIDDEN), "w3": last, "b3": np.zeros(3)}
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["a"], transB=1),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "w2", "b2"], ["c"], transB=1),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "w3", "b3"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return Variant(
        name="net.fp32",
        stage="export",
        format="onnx",
        files=(store.publish_bytes(model.SerializeToString(), "model.onnx"),),
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),),
        outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, 3)),),
    )


def test_every_form_with_accuracy_control_and_a_plain_one_beside_it(store: Store, job: Job) -> None:
    data, parent = splits(store), classifier(store)
    spec = QuantizeSpec(
        methods=("static", "weights8", "weights4", "fp16", "bf16"),
        calibration_method="auto",
        bias_correction=True,
        accuracy_control=AccuracyControl(max_drop=0.01, samples=100),
    )
    made = quantize.task.fn(job, spec, data=data, parent=parent, label="careful")
    values = made.values
    assert made.name == "quantize:careful"
    names = [v.name for v in made.variants]
    assert names == ["careful.int8-static", "careful.weights8", "careful.weights4", "careful.fp16"]
    assert made.roles == dict(
        zip(("static", "weights8", "weights4", "fp16"), (v.digest for v in made.variants), strict=True)
    )
    assert values["skipped"].keys() == {"bf16"} and values["warnings"] == []
    assert [v.runtime.cpu_class for v in made.variants] == [cpu_class(), None, cpu_class(), None]
    static, weights8, weights4, fp16 = (values["variants"][v.digest] for v in made.variants)
    assert static["fp32_layers"] == ["Gemm w2 [16, 16]"] and static["quantized"] == 2
    assert all(form["agreement"] > 0.95 for form in (static, weights8, weights4, fp16))
    assert (fp16["share"], fp16["fp32_layers"]) == (1.0, [])
    control = values["accuracy_control"]["static"]
    assert control["fp32_groups"] == static["fp32_layers"] and control["metric"] == "accuracy"
    assert control["fp32_share"] == pytest.approx(256 / (64 + 256 + 48)) == pytest.approx(1 - static["share"])
    assert control["steps"][0]["drop"] > 0.05 and control["drop"] <= control["max_drop"] == 0.01
    assert control["rows"] == 300 and control["steps"][1]["group"] == "Gemm w2 [16, 16]"
    assert values["calibration_method"] in values["calibration_errors"]
    assert values["bias_correction"]["error_after"] is not None
    for variant in made.variants:
        onnx.checker.check_model(onnx.load_from_string(store.fetch_bytes(variant.file("model.onnx"))))

    plain = quantize.task.fn(job, QuantizeSpec(methods=("static",)), data=data, parent=parent)
    assert plain.name == "quantize:net" and [v.name for v in plain.variants] == ["net.int8-static"]
    assert plain.values["variants"][plain.variant.digest]["agreement"] < 0.9
    assert not {"accuracy_control", "equalization", "bias_correction"} & plain.values.keys()

    # The huge weight sits on a channel that equalization scales down, which no per-tensor range survives otherwise.
    equalized = QuantizeSpec(methods=("static",), equalize=True)
    other = quantize.task.fn(job, equalized, data=data, parent=parent, label="equal")
    assert other.values["equalization"]["pairs"] == 2 and other.values["equalization"]["error"] < 1e-4
    assert other.values["variants"][other.variant.digest]["agreement"] > 0.95


def test_the_symmetric_form_is_one_like_the_others(store: Store, job: Job) -> None:
    made = quantize.task.fn(job, QuantizeSpec(methods=("symmetric",)), data=splits(store), parent=classifier(store))
    assert made.variant.name == "net.int8-symmetric" and made.by_role("symmetric") == made.variant
    assert made.values["calibration_rows"] == 96 and made.values["symmetric"] == {"calibration_method": "minmax"}
    assert made.variant.runtime.cpu_class == cpu_class()


def test_scales_that_are_powers_of_two_stay_so_to_the_end(store: Store, job: Job) -> None:
    spec = QuantizeSpec(methods=("static",), scales="power_of_two", bias_correction=True)
    made = quantize.task.fn(job, spec, data=splits(store), parent=classifier(store))
    model = onnx.load_from_string(store.fetch_bytes(made.variant.file("model.onnx")))
    steps = {n.input[1] for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")}
    values = [numpy_helper.to_array(i) for i in model.graph.initializer if i.name in steps]
    assert len(values) >= 3 and all(np.all(np.frexp(value)[0] == 0.5) for value in values)


def test_calibration_data_unlike_the_training_data_are_reported(store: Store, job: Job) -> None:
    parent, spec = classifier(store), QuantizeSpec(methods=("static",))
    made = quantize.task.fn(job, spec, data=splits(store, calibration=3.0), parent=parent)
    assert made.values["warnings"]
    assert all("calibration rows are unlike the training rows in 'features'" in w for w in made.values["warnings"])


def test_a_plan_names_the_forms_by_their_label(store: Store, job: Job) -> None:
    plan = Plan()
    token = planning.set(plan)
    try:
        spec = QuantizeSpec(methods=("static", "weights4"), accuracy_control=AccuracyControl(max_drop=0.01))
        made = quantize(job, spec, data=splits(store), parent=classifier(store), label="try")
    finally:
        planning.reset(token)
    assert [v.name for v in made.variants] == ["try.int8-static", "try.weights4"]
    assert [line.name for line in plan.lines] == ["inputs", "quantize:try"]


@pytest.mark.parametrize("max_drop", [-0.1, float("nan"), float("inf")])
def test_a_budget_is_a_finite_number_from_zero(max_drop: float) -> None:
    with pytest.raises(ValidationError):
        AccuracyControl(max_drop=max_drop)
