"""Cut as a stage: its own process, a real store; the variant is loaded, pruned, trained and exported like any other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cut_networks import cuttable
from digits_world import store_splits
from torch import nn

from model_registry.store import Store
from model_registry.variant import Variant
from tasks.cut import CutSpec, cut
from tasks.cut.model_cutter import cut_model
from tasks.distill import DistillSpec, distill
from tasks.export import ExportSpec, export
from tasks.prune import PruneSpec, prune
from tasks.running.errors import CutRefused
from tasks.running.launch import kept_processes
from tasks.running.splits import DataRef
from tasks.running.stage import Job
from tasks.torch_models.fit_rows import predict
from tasks.torch_models.model_structure import ModelCuts, ModelStructure
from tasks.torch_models.torch_cost import torch_cost
from tasks.torch_models.torch_variant import build, load, read_architecture, save
from tasks.workloads.workload import Workload


@pytest.fixture(autouse=True)
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    with kept_processes():
        yield


def published(store: Store, model: nn.Module, workload: Workload, structure: ModelStructure) -> Variant:
    return save(
        store,
        model,
        workload=workload,
        structure=structure,
        sample=workload.splits()["validation"],
        name="model",
        stage="test",
    )


def start(store: Store, workload: Workload) -> tuple[Job, DataRef, Variant]:
    """A job, its data, and a teacher that nobody has trained."""
    teacher = published(store, build(workload, "teacher", {}, seed=3), workload, ModelStructure(role="teacher"))
    job = Job(run_id="test-run", model="cut", store=store.uri, workload=workload.ref, device="cpu")
    return job, store_splits(store, workload.splits()), teacher


def test_a_teacher_is_cut_and_goes_through_all_stages_after_it(store: Store) -> None:
    workload = cuttable("ResNet20")
    job, data, teacher = start(store, workload)
    outcome = cut.task.fn(job, CutSpec(stride=2, depth=0.5), data=data, parent=teacher)
    cuts = ModelCuts(strides={"stem": (2, 2)}, removed=("stages.0.1", "stages.1.1", "stages.2.1"))
    assert read_architecture(store, outcome.variant).cuts == cuts
    assert (outcome.variant.name, outcome.variant.stage) == ("cut", "cut")

    whole, model = (load(store, v, workload=workload) for v in (teacher, outcome.variant))
    weights = whole.state_dict()
    rows = {"image": torch.from_numpy(workload.splits()["train"]["image"][:2])}
    facts = {"name": "cut", **torch_cost(model, rows).as_json()}
    values = dict(outcome.values)
    assert 0 < values.pop("row_seconds") < 1
    assert values.pop("larger")["batch_size"] in (64, 128, 256)
    assert values == {
        "variants": {outcome.variant.digest: facts},
        "before": torch_cost(whole, rows).as_json(),
        "layer": "stem",
        "blocks": list(cuts.removed),
        "batchnorm_layers": 15,
    }
    assert facts["macs"] < outcome.values["before"]["macs"] / 6
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, weights[name])}
    assert {name.rpartition(".")[2] for name in moved} == {"running_mean", "running_var", "num_batches_tracked"}

    again = cut.task.fn(job, CutSpec(stride=2, depth=0.5), data=data, parent=teacher, label="other")
    assert again.variant.digest == outcome.variant.digest  # names are labels
    assert cut.task.fn(job, CutSpec(stride=2, depth=0.5), data=data, parent=teacher).status == "reused"

    pruned = prune.task.fn(job, PruneSpec(ratio=0.5, epochs=1), data=data, parent=outcome.variant, teacher=teacher)
    spec = DistillSpec(epochs=1, control=False)
    tuned = distill.task.fn(job, spec, data=data, teacher=teacher, parent=pruned.variant)
    structures = [read_architecture(store, v) for v in (pruned.variant, tuned.variant)]
    assert all(s.cuts == cuts and s.pruning == structures[0].pruning for s in structures) and structures[0].pruning
    for variant in (pruned.variant, tuned.variant):
        found = load(store, variant, workload=workload)
        assert torch_cost(found, rows).macs < facts["macs"] / 2
        assert published(store, found, workload, read_architecture(store, variant)).digest == variant.digest
    with pytest.raises(CutRefused, match="cut the model that it was pruned from"):
        cut.task.fn(job, CutSpec(stride=2), data=data, parent=pruned.variant)
    exported = export.task.fn(job, ExportSpec(), data=data, parent=tuned.variant)
    assert exported.values["variants"][exported.variant.digest]["macs"] < facts["macs"] / 2


@pytest.mark.parametrize(("name", "spec"), [("TinyNext", {"stride": 2}), ("TinyViT", {"depth": 0.5})])
def test_what_was_cut_can_be_cut_again(store: Store, name: str, spec: dict[str, Any]) -> None:
    workload = cuttable(name)
    job, data, variant = start(store, workload)
    for _ in range(2):
        outcome = cut.task.fn(job, CutSpec(**spec), data=data, parent=variant)
        variant = outcome.variant
        assert outcome.values["variants"][variant.digest]["macs"] < outcome.values["before"]["macs"]
        again = published(store, load(store, variant, workload=workload), workload, read_architecture(store, variant))
        assert again.digest == variant.digest  # weights, structure, and answers to made-up rows


@pytest.mark.parametrize(
    ("name", "stride", "depth"),
    [("ResNet20", 2, 0.5), ("MobileNetClassifier", 4, 0.3), ("TinyNext", 2, 0.5), ("TinyViT", 1, 0.5)],
)
def test_a_cut_model_answers_bit_for_bit_when_it_is_loaded(store: Store, name: str, stride: int, depth: float) -> None:
    workload = cuttable(name)
    model = build(workload, "teacher", {}, seed=3).eval()
    columns = workload.splits()["test"]
    whole = predict(model, workload=workload, columns=columns)
    cuts = cut_model(model, {"image": torch.from_numpy(columns["image"][:2])}, stride=stride, depth=depth)
    variant = published(store, model, workload, ModelStructure(role="teacher").cut_further(cuts))
    found = load(store, variant, workload=workload)
    answers = [predict(m, workload=workload, columns=columns) for m in (model, found)]
    np.testing.assert_array_equal(answers[0], answers[1])
    assert not np.array_equal(answers[0], whole)
