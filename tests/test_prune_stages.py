"""Prune, export and quantize as stages: children of their own, a real store, the results handed on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from digits_world import DigitsWorld, digits_world, store_splits

from flows.spec import load_spec
from model_registry.cpu_class import cpu_class
from model_registry.store import Store
from tasks.export import ExportSpec, export
from tasks.prune import PruneSpec, prune
from tasks.quantize import QuantizeSpec, quantize
from tasks.running.errors import CalibrationError, PruningRefused, SpecError
from tasks.running.launch import kept_processes
from tasks.running.splits import read_split
from tasks.running.stage_plan import Plan, planning
from tasks.torch_models.torch_variant import load, read_architecture
from tasks.workloads.workload import load_workload


@pytest.fixture
def world(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DigitsWorld]:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    with kept_processes():
        yield digits_world(store)


def test_a_model_goes_through_prune_export_and_quantize_and_few_rows_are_refused(
    store: Store, world: DigitsWorld
) -> None:
    job, data = world.job, world.data
    workload = load_workload(job.workload)
    spec = PruneSpec(ratio=0.5, epochs=10, steps=2, learning_rate=4e-3)
    pruned = prune.task.fn(job, spec, data=data, parent=world.teacher, teacher=world.teacher)
    model = load(store, pruned.variant, workload=workload)
    parameters = sum(p.numel() for p in model.parameters())
    values = pruned.values
    assert values["layers"] == {"conv1": [8, 4], "conv2": [16, 8], "dense": [32, 16], "head": [10, 10]}
    assert values["variants"][pruned.variant.digest]["parameters"] == parameters < values["before"]["parameters"] / 2
    assert values["variants"][pruned.variant.digest]["macs"] < values["before"]["macs"] / 2
    assert values["batchnorm_layers"] == 2 and values["untraced"] == []
    assert values["validation"]["parent"] > 0.9 and values["validation"]["tuned"] > 0.85
    assert len(read_architecture(store, pruned.variant).pruning or []) == 6
    entry = pruned.file("pruned.history.jsonl")
    assert entry is not None
    rows = [json.loads(line) for line in store.fetch_bytes(entry).splitlines()]
    assert [row["epoch"] for row in rows] == [*range(1, 11)]
    assert [row["step"] for row in rows] == [1] * 5 + [2] * 5

    exported = export.task.fn(job, ExportSpec(), data=data, parent=pruned.variant)
    file = store.fetch_bytes(exported.variant.file("model.onnx"))
    assert exported.variant.name == "pruned.fp32"
    assert [s.name for s in exported.variant.inputs] == ["image"]
    assert [(s.name, s.shape) for s in exported.variant.outputs] == [("logits", (-1, 10))]
    assert json.loads(store.fetch_bytes(exported.variant.file("assets/labels.json"))) == [str(i) for i in range(10)]
    cost = exported.values["variants"][exported.variant.digest]
    assert cost["macs"] == values["variants"][pruned.variant.digest]["macs"]
    assert cost["bytes"] == len(file) < 4 * parameters + 1200
    images = read_split(store, data, "validation")["image"][:5]
    with torch.no_grad():
        wanted = model(image=torch.from_numpy(images) / 16).numpy()
    found = onnxruntime.InferenceSession(file).run(["logits"], {"image": images})[0]
    np.testing.assert_allclose(found, wanted, atol=1e-4)

    quantized = quantize.task.fn(job, QuantizeSpec(), data=data, parent=exported.variant)
    assert [v.name for v in quantized.variants] == ["pruned.int8-static", "pruned.int8-dynamic"]
    for variant in quantized.variants:
        report = quantized.values["variants"][variant.digest]
        assert variant.runtime.cpu_class == cpu_class()
        assert variant.file("assets/labels.json") == exported.variant.file("assets/labels.json")
        assert report["agreement"] > 0.97
        assert (report["parameters"], report["macs"]) == (cost["parameters"], cost["macs"])
        assert report["bytes"] == variant.file("model.onnx").size < cost["bytes"]
        onnx.checker.check_model(onnx.load_from_string(store.fetch_bytes(variant.file("model.onnx"))))
    static, dynamic = (quantized.values["variants"][v.digest] for v in quantized.variants)
    assert (static["quantized"], static["quantizable"], static["share"]) == (4, 4, 1.0)
    assert (dynamic["quantized"], dynamic["quantizable"]) == (2, 4) and len(dynamic["fp32_layers"]) == 2
    assert quantized.values["calibration_rows"] == data.split("calibration").rows // 16 * 16 > 50

    assert export.task.fn(job, ExportSpec(), data=data, parent=pruned.variant).status == "reused"
    assert quantize.task.fn(job, QuantizeSpec(), data=data, parent=exported.variant).status == "reused"

    splits = {name: read_split(store, data, name) for name in ("train", "calibration", "validation", "test")}
    splits["calibration"] = {name: values[:9] for name, values in splits["calibration"].items()}
    few = store_splits(store, splits)
    with pytest.raises(CalibrationError, match="the calibration split has 9 rows; at least 16 are needed"):
        quantize.task.fn(job, QuantizeSpec(), data=few, parent=exported.variant)


def test_a_plan_names_the_variants_that_would_be_made(store: Store, world: DigitsWorld) -> None:
    plan = Plan()
    token = planning.set(plan)
    try:
        pruned = prune(world.job, PruneSpec(), data=world.data, parent=world.teacher, teacher=world.teacher)
        exported = export(world.job, ExportSpec(), data=world.data, parent=pruned.variant)
        quantized = quantize(world.job, QuantizeSpec(methods=("dynamic",)), data=world.data, parent=exported.variant)
    finally:
        planning.reset(token)
    assert [v.name for v in quantized.variants] == ["pruned.int8-dynamic"]
    made = [line for line in plan.lines if line.name != "inputs"]
    assert [(line.name, line.action) for line in made] == [
        ("prune", "computed"),
        ("export:pruned", "computed"),
        ("quantize:pruned", "computed"),
    ]


def test_two_prunings_of_one_run_have_names_of_their_own(store: Store, world: DigitsWorld) -> None:
    job, data, teacher = world.job, world.data, world.teacher
    bare = PruneSpec(ratios={"conv1": 0.25, "conv2": 0.5, "dense": 0.0}, epochs=0)
    found = prune.task.fn(job, bare, data=data, parent=teacher, teacher=teacher, label="rung-1")
    assert (found.name, found.variant.name) == ("prune:rung-1", "rung-1") and found.files == ()
    assert found.values["layers"] == {"conv1": [8, 6], "conv2": [16, 8], "dense": [32, 32], "head": [10, 10]}
    assert found.values["validation"] == {} and 0 < found.values["row_seconds"] < 1


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("{importance: lamp}", r"prune.importance: 'lamp' is refused: lamp was removed: .*; use magnitude"),
        ("{importance: bn_scale}", r"prune.importance: 'bn_scale' is refused: .* use magnitude"),
        ("{scope: isomorphic}", r"prune.scope: 'isomorphic' is refused: .* use global"),
        ("{kind: '2:4', ratio: 0.5}", r"prune: .* kind '2:4' was removed: .* faster; remove kind .*, and add quantize"),
        ("{kind: unstructured}", r"kind 'unstructured' was removed"),
        ("{ratios: {conv1: 1.0}}", r"prune.ratios.conv1: 1.0 is refused: .*less than 1"),
    ],
)
def test_what_was_removed_is_refused_with_what_to_use_instead(tmp_path: Path, part: str, says: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(f"schema: 1\nmodel: m\nworkload: mine_workload:Mine\nprune: {part}\n")
    with pytest.raises(SpecError, match=says):
        load_spec(path)


def test_a_spec_that_names_the_kind_that_is_left_still_loads() -> None:
    assert PruneSpec.model_validate({"kind": "structured", "ratio": 0.3}) == PruneSpec(ratio=0.3)


def test_a_layer_that_would_be_emptied_is_refused_in_the_parent_process(store: Store, world: DigitsWorld) -> None:
    spec = PruneSpec(ratio=0.97, epochs=1)
    with pytest.raises(PruningRefused, match=r"prune.ratio 0.97 would leave no channel in .*'conv1' \(8 channels\)"):
        prune.task.fn(world.job, spec, data=world.data, parent=world.teacher, teacher=world.teacher)
