"""Quantization-aware training as a stage: from a quantized variant in the store to a better one, twice taught."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from digits_world import DigitsWorld, digits_world

from model_registry.store import Store
from tasks.export import ExportSpec, export
from tasks.qat import QatSpec, qat
from tasks.quantize import QuantizeSpec, quantize
from tasks.running.errors import QatUnsupported
from tasks.running.launch import kept_processes
from tasks.running.stage_plan import Plan, planning


@pytest.fixture
def world(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DigitsWorld]:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    with kept_processes():
        yield digits_world(store)


def test_an_int8_variant_is_trained_with_torch_and_onnx_teachers(store: Store, world: DigitsWorld) -> None:
    job, data = world.job, world.data
    fp32 = export.task.fn(job, ExportSpec(), data=data, parent=world.teacher).variant
    static = quantize.task.fn(job, QuantizeSpec(methods=("static",)), data=data, parent=fp32)
    parent = next(v for v in static.variants if v.name == "teacher.int8-static")
    spec = QatSpec(epochs=3)

    trained = qat.task.fn(job, spec, data=data, parent=parent, teacher=world.teacher, float_parent=fp32)
    variant, values = trained.variant, trained.values
    assert (trained.name, variant.name, variant.stage) == ("qat:teacher", "teacher.int8-qat", "qat")
    assert (variant.runtime, variant.inputs, variant.outputs) == (parent.runtime, parent.inputs, parent.outputs)
    assert variant.file("assets/labels.json") == parent.file("assets/labels.json")
    assert variant.digest != parent.digest
    before, after = (onnx.load_from_string(store.fetch_bytes(v.file("model.onnx"))) for v in (parent, variant))
    assert [n.op_type for n in after.graph.node] == [n.op_type for n in before.graph.node]
    cost, given = values["variants"][variant.digest], static.values["variants"][parent.digest]
    assert (cost["parameters"], cost["macs"]) == (given["parameters"], given["macs"])
    assert cost["bytes"] == variant.file("model.onnx").size
    assert values["layers"] == values["float_weights"] == 4
    assert values["validation"]["parent"] > 0.85
    assert values["validation"]["qat"] >= values["validation"]["parent"] - 0.02
    assert values["validation"]["qat"] == pytest.approx(values["val_metric"], abs=1e-6)
    parity = values["parity"]
    assert parity["rows"] == data.split("validation").rows
    assert parity["beyond"] <= parity["allowed"] == 1
    entry = trained.file("teacher.int8-qat.history.jsonl")
    assert entry is not None
    curves = [json.loads(line) for line in store.fetch_bytes(entry).splitlines()]
    assert [row["epoch"] for row in curves] == [1, 2, 3]
    assert np.isfinite([row["train_loss"] for row in curves]).all()

    again = qat.task.fn(job, spec, data=data, parent=parent, teacher=world.teacher, float_parent=fp32)
    assert again.status == "reused" and again.variant == variant

    spec = QatSpec(epochs=1)
    asked = qat.task.fn(job, spec, data=data, parent=parent, teacher=fp32, label="brought")
    assert asked.name == "qat:brought" and asked.values["float_weights"] == 0
    assert asked.values["validation"]["qat"] >= values["validation"]["parent"] - 0.02

    with pytest.raises(QatUnsupported, match="no int8 weights and activations"):
        qat.task.fn(job, spec, data=data, parent=fp32, teacher=world.teacher)


def test_a_plan_names_the_variant(store: Store, world: DigitsWorld) -> None:
    plan = Plan()
    token = planning.set(plan)
    try:
        fp32 = export(world.job, ExportSpec(), data=world.data, parent=world.teacher)
        static = quantize(world.job, QuantizeSpec(methods=("static",)), data=world.data, parent=fp32.variant)
        planned = qat(world.job, QatSpec(), data=world.data, parent=static.variants[0], teacher=world.teacher)
    finally:
        planning.reset(token)
    assert [v.name for v in planned.variants] == ["teacher.int8-qat"]
    assert [line.name for line in plan.lines if line.name != "inputs"] == [
        "export:teacher",
        "quantize:teacher",
        "qat:teacher",
    ]
