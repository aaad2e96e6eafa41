"""measure: a real ONNX variant under the real engine, scored and compared, with real S3."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from measured_models import CLASSES, FEATURES, blobs, linear, make_data, make_job, make_variant
from onnx import TensorProto, helper, numpy_helper

from model_registry.measurement import Measurement
from model_registry.store import Store
from tasks.evidence.arrays import fetch_arrays, publish_arrays
from tasks.evidence.scoring import per_class, score
from tasks.measure import MeasureSpec, measure, measurement_of
from tasks.measure.kept_answers import kept_answers
from tasks.onnx_models.onnx_cost import onnx_cost
from tasks.running.errors import GateFailed, ParityFailed, WorkloadError
from tasks.running.launch import kept_processes
from tasks.running.splits import MetricRef
from tasks.running.stage import WorkloadRef
from tasks.validate import GateSpec, decision_of, validate

QUICK = MeasureSpec(rounds=5, seconds=0.1)


@pytest.mark.timeout(120)
def test_a_variant_is_measured_against_the_baseline_and_then_reused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    job, data = make_job(store, tmp_path), make_data(store)
    teacher = make_variant(store, "teacher", linear(), width=600)
    student = make_variant(store, "student", linear(noise=0.4), stage="distill")

    base = measure.task.fn(job, QUICK, data=data, variant=teacher)
    own = measurement_of(base)
    assert base.variants == (teacher,) and own.baseline == own.digest == teacher.digest
    assert own.paired is None and own.speedup is None and own.split == "validation" and own.samples == 300
    assert own.parameters == FEATURES * 600 * 2 + FEATURES * CLASSES == own.macs
    assert own.bytes == teacher.file("model.onnx").size > 4 * own.parameters

    outcome = measure.task.fn(job, QUICK, data=data, variant=student, baseline=base)
    found = measurement_of(outcome)
    assert outcome.status == "computed" and outcome.name == "measure:student"
    # The numbers are those that numpy computes from the weights, on the doubled features that `batch` makes.
    columns = blobs(300, seed=2)
    right = (columns["features"] * 2 @ linear(noise=0.4)).argmax(axis=1) == columns["target"]
    teacher_right = (columns["features"] * 2 @ linear()).argmax(axis=1) == columns["target"]
    assert found.metric.value == found.accuracy == pytest.approx(right.mean())
    assert found.metric.interval[0] < right.mean() < found.metric.interval[1]
    assert set(found.per_class) == {"red", "green", "blue"}
    assert found.per_class["red"].value == pytest.approx(right[columns["target"] == 0].mean())
    assert set(found.class_losses) == set(found.per_class) and not own.class_losses
    red = columns["target"] == 0
    assert found.class_losses["red"].loss == pytest.approx(teacher_right[red].mean() - right[red].mean())
    assert found.paired is not None and found.paired.reference == teacher.digest
    assert found.paired.worse_indices == tuple(np.flatnonzero(teacher_right & ~right).tolist())
    assert found.paired.better == (right & ~teacher_right).sum() > 0
    assert found.p50_ms <= found.p95_ms and found.throughput.value > 0 and found.peak_rss_bytes > 10 << 20
    assert found.latency_interval.p50[0] <= found.p50_ms <= found.latency_interval.p50[1]
    assert found.speedup is not None and found.cpu_seconds > 0 and found.threads == 1 and found.batch == 1
    outputs = fetch_arrays(store, found.predictions)["outputs"]
    assert outputs == pytest.approx(columns["features"] * 2 @ linear(noise=0.4), abs=1e-4)
    assert fetch_arrays(store, found.scores)["score"].tolist() == right.astype(float).tolist()
    record = store.read_record(found.key)
    assert record is not None and Measurement.model_validate_json(record) == found
    assert found.key.startswith(f"measurements/{student.digest}/{found.hardware.key}/")

    again = measure.task.fn(job, QUICK, data=data, variant=student, baseline=base)
    assert again.status == "reused" and measurement_of(again) == found
    other = measure.task.fn(job, QUICK.model_copy(update={"batch": 4}), data=data, variant=student, baseline=base)
    assert other.status == "computed" and "spec.batch 1 -> 4" in other.reason
    assert measurement_of(other).metric == found.metric


def test_of_large_answers_as_many_as_a_release_records_are_kept() -> None:
    small, large = np.zeros((1000, 10), np.float32), np.zeros((50, 1 << 20), np.float32)
    assert len(kept_answers(small, 1)) == 1000
    assert [len(kept_answers(large, batch)) for batch in (1, 3)] == [16, 18]


def test_a_metric_of_the_users_own_is_asked(store: Store, tmp_path: Path) -> None:
    data = make_data(store, metric=MetricRef(name="margin", better="higher", builtin=False))
    job = make_job(store, tmp_path, metric="margin")
    outputs = np.arange(6.0).reshape(2, 3)
    scores = score(data, job.workload, outputs, np.array([2, 0]), name="v")
    assert scores.tolist() == [2.0, 3.0]
    assert per_class(data, scores, np.array([2, 0]))["blue"].value == 2.0


def test_a_metric_must_give_one_score_per_sample(store: Store, tmp_path: Path) -> None:
    (tmp_path / "odd_workload.py").write_text(
        "from tasks.workloads.workload import Metric\n"
        "class Odd:\n"
        "    def model(self, role): ...\n"
        "    def splits(self): ...\n"
        "    def metric(self): return Metric('odd', 'lower', lambda o, t: o)\n"
    )
    data = make_data(store, metric=MetricRef(name="odd", better="lower", builtin=False))
    ref = WorkloadRef(path="odd_workload:Odd", folder=str(tmp_path))
    with pytest.raises(WorkloadError, match=r"shape \[2, 3\] for 2 samples"):
        score(data, ref, np.zeros((2, 3)), np.zeros(2), name="v")


CUSTOM = """
import numpy as np
from tasks.workloads.workload import Metric

class Custom:
    def __init__(self, what="cost"):
        self.what = what
    def model(self, role): ...
    def splits(self): ...
    def metric(self):
        if self.what == "cost":  # smaller is better: the distance of the right logit from 10
            return Metric("cost", "lower", lambda o, t: 10 - o[np.arange(len(t)), t])
        with np.errstate(all="ignore"):
            return Metric("ratio", "lower", lambda o, t: np.where(t == 2, np.nan, 1.0))
"""


def test_a_metric_that_is_nan_on_sound_answers_is_refused_by_name(store: Store, tmp_path: Path) -> None:
    (tmp_path / "custom_workload.py").write_text(CUSTOM)
    data = make_data(store, metric=MetricRef(name="ratio", better="lower", builtin=False))
    ref = WorkloadRef(path="custom_workload:Custom", folder=str(tmp_path), arguments={"what": "ratio"})
    outputs, targets = np.zeros((4, 3)), np.array([0, 2, 1, 2])
    with pytest.raises(
        WorkloadError, match=r"'ratio': per_sample\(\) gave nan for 2 of 4 samples of v \(rows \[1, 3\].*finite score"
    ):
        score(data, ref, outputs, targets, name="v")
    outputs[1] = np.nan  # the variant's fault, not the metric's
    with pytest.raises(ParityFailed, match="the variant answers NaN or infinity"):
        score(data, ref, outputs, targets, name="v")


@pytest.mark.timeout(120)
def test_where_smaller_is_better_measure_and_the_gates_know_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    job = make_job(store, tmp_path)
    (tmp_path / "cost_workload.py").write_text(CUSTOM)
    job = job.model_copy(update={"workload": WorkloadRef(path="cost_workload:Custom", folder=str(tmp_path))})
    columns = {name: blobs(300, seed=seed) for seed, name in ((2, "validation"), (3, "test"))}
    arrays = {name: {"x": c["features"] * 2, "target": c["target"]} for name, c in columns.items()}
    entries = {name: publish_arrays(store, f"{name}.npz", **values) for name, values in arrays.items()}
    for module in ("tasks.measure", "tasks.validate"):
        monkeypatch.setattr(f"{module}.split_inputs", lambda job, data: entries)
    data = make_data(store, metric=MetricRef(name="cost", better="lower", builtin=False))
    teacher = make_variant(store, "teacher", linear())
    worse = make_variant(store, "worse", linear() * 0.5, stage="distill")
    better = make_variant(store, "better", linear() * 1.1, stage="distill")
    with kept_processes():
        base = measure.task.fn(job, QUICK, data=data, variant=teacher)
        found = {
            v.name: measurement_of(measure.task.fn(job, QUICK, data=data, variant=v, baseline=base))
            for v in (worse, better)
        }
        own = measurement_of(base)
        assert found["worse"].metric.value > own.metric.value > found["better"].metric.value
        assert found["worse"].metric.better == "lower"
        paired = {name: m.paired for name, m in found.items()}
        assert paired["worse"] is not None and paired["better"] is not None
        assert paired["worse"].difference < 0 < paired["better"].difference
        assert paired["better"].better > 200 and paired["worse"].worse > 200
        gates = GateSpec(margin=0.1)
        decision = decision_of(
            validate.task.fn(job, gates, data=data, baseline=own, candidates=[found["worse"], found["better"]])
        )
        assert decision.chosen == better.digest
        with pytest.raises(GateFailed, match="worse"):
            validate.task.fn(job, gates, data=data, baseline=own, candidates=[found["worse"]])


def test_answers_that_are_not_numbers_are_refused(store: Store) -> None:
    data = make_data(store, metric=MetricRef(name="mse", better="lower", builtin=True), task="regression")
    with pytest.raises(ParityFailed, match=r"int8: mse of 1 of 2 samples is not a finite number \(rows \[1\]"):
        score(data, WorkloadRef(path="a:B"), np.array([[1.0], [np.nan]]), np.array([1.0, 1.0]), name="int8")


def test_costs_of_convolutions_and_quantized_graphs() -> None:
    weight = np.ones((8, 3, 3, 3), np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero_point"], ["wf"], axis=0),
        helper.make_node("Conv", ["x", "wf"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["y"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense", "bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        initializer=[
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.ones(8, np.float32), "w_scale"),
            numpy_helper.from_array(np.zeros(8, np.int8), "w_zero_point"),
            numpy_helper.from_array(np.ones((10, 512), np.float32), "dense"),
            numpy_helper.from_array(np.ones(10, np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    costs = onnx_cost(model)
    assert costs.macs == 8 * 8 * 8 * 27 + 512 * 10
    assert costs.parameters == 8 * 27 + 5120 + 10
    free = onnx.ModelProto()
    free.CopyFrom(model)
    free.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    assert onnx_cost(free).macs is None


def test_scales_of_dynamic_quantization_are_no_parameters() -> None:
    """The form that ONNX Runtime's quantize_dynamic gives a dense layer, with meaningless names."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["a", "b", "c"]),
        helper.make_node("MatMulInteger", ["a", "w", "c", "z"], ["d"]),
        helper.make_node("Cast", ["d"], ["e"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["b", "s"], ["f"]),
        helper.make_node("Mul", ["e", "f"], ["g"]),
        helper.make_node("Add", ["g", "h"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 32])],
        initializer=[
            numpy_helper.from_array(np.ones((64, 32), np.int8), "w"),
            numpy_helper.from_array(np.zeros(32, np.int8), "z"),
            numpy_helper.from_array(np.ones(32, np.float32), "s"),
            numpy_helper.from_array(np.ones(32, np.float32), "h"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    costs = onnx_cost(model)
    assert (costs.parameters, costs.macs) == (64 * 32 + 32, 64 * 32)
