"""What older versions stored still loads, and still is what it says: one of each kind of record, file and spec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.searching.search_record import SearchRecord
from flows.spec import load_spec
from infra.home import Home
from model_registry.ledger import Intent, ReleaseOutcome
from model_registry.manifest import FileEntry, hash_file
from model_registry.measurement import Measurement
from model_registry.recording import Recording
from model_registry.store import Store
from model_registry.variant import Variant
from serving.engine import Engine
from tasks.report.pages import render_html
from tasks.report.run_report import RunReport
from tasks.running.stage import WorkloadRef
from tasks.running.stage_cache import StageRecord
from tasks.torch_models.teacher_answers import AnswersRecord
from tasks.torch_models.torch_variant import Architecture, load
from tasks.workloads.workload import load_workload

ARTIFACTS = Path(__file__).parent / "artifacts"
VERSIONS = sorted(path for path in ARTIFACTS.iterdir() if path.is_dir())
RECORDS: dict[str, Any] = {
    "architecture.json": Architecture,
    "ledger_intent.json": Intent,
    "ledger_outcome.json": ReleaseOutcome,
    "measurement.json": Measurement,
    "recording.json": Recording,
    "run_chain.json": RunReport,
    "run_search.json": RunReport,
    "search.json": SearchRecord,
    "stage.json": StageRecord,
    "teacher_answers.json": AnswersRecord,
    "variant_onnx.json": Variant,
    "variant_torch.json": Variant,
}

each_version = pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)


def contained(stored: Any, loaded: Any, where: str = "") -> list[str]:
    """Where what was loaded differs from what was stored; fields that came later are no difference."""
    if isinstance(stored, dict) and isinstance(loaded, dict):
        return [d for k, v in stored.items() for d in contained(v, loaded.get(k), f"{where}.{k}")]
    if isinstance(stored, list) and isinstance(loaded, list) and len(stored) == len(loaded):
        return [
            d for i, (a, b) in enumerate(zip(stored, loaded, strict=True)) for d in contained(a, b, f"{where}[{i}]")
        ]
    return [] if stored == loaded else [f"{where}: {stored!r} became {loaded!r}"]


@each_version
@pytest.mark.parametrize("name", RECORDS)
def test_every_kind_of_record_loads_with_all_it_says(version: Path, name: str) -> None:
    data = (version / name).read_bytes()
    loaded = RECORDS[name].model_validate_json(data)
    assert contained(json.loads(data), json.loads(loaded.to_json())) == []


@each_version
def test_the_files_are_those_of_the_manifests(version: Path) -> None:
    for manifest in ("variant_onnx.json", "variant_torch.json"):
        variant = Variant.model_validate_json((version / manifest).read_bytes())  # checks its digest
        for entry in variant.files:
            assert hash_file(version / Path(entry.path).name) == entry.sha256, entry.path


@each_version
def test_a_model_answers_as_it_was_recorded(version: Path, tmp_path: Path) -> None:
    variant = Variant.model_validate_json((version / "variant_onnx.json").read_bytes())
    for entry in variant.files:
        target = tmp_path / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((version / target.name).read_bytes())
    said = Recording.model_validate_json((version / "recording.json").read_bytes())
    assert hash_file(version / "recording.npz") == said.file.sha256
    with np.load(version / "recording.npz", allow_pickle=False) as recorded:
        answers = Engine(tmp_path, variant).run({"image": recorded["input/image"]})
        assert len(answers["label"]) == said.rows
        np.testing.assert_allclose(answers[said.output], recorded["output"], rtol=1e-4, atol=1e-4)


@each_version
def test_a_pruned_model_is_built_again_by_today_s_code(version: Path, store: Store) -> None:
    """The workload's code has moved since; what counts is that it answers as it did."""
    variant = Variant.model_validate_json((version / "variant_torch.json").read_bytes())
    for entry in variant.files:
        assert store.publish_bytes((version / entry.path).read_bytes(), entry.path) == FileEntry.model_validate(entry)
    said = Architecture.model_validate_json((version / "architecture.json").read_bytes())
    assert said.pruning is not None
    workload = load_workload(WorkloadRef(path=said.workload, arguments=said.arguments))
    model = load(store, variant, workload=workload)
    assert sum(p.numel() for p in model.parameters()) < 3000  # the fresh one has 53 000


@each_version
def test_a_report_can_still_be_drawn(version: Path) -> None:
    for name in ("run_chain.json", "run_search.json"):
        report = RunReport.model_validate_json((version / name).read_bytes())
        page = render_html(report)
        assert report.run_id in page and all(row.name in page for row in report.variants if row.digest == report.chosen)


@each_version
def test_specs_still_load(version: Path) -> None:
    specs = sorted(version.glob("spec_*.yaml"))
    assert len(specs) >= 6
    for path in specs:
        assert load_spec(path).workload.path.startswith("tasks.workloads."), path.name


@each_version
def test_the_settings_of_a_stack_still_load(version: Path, tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_bytes((version / "stack.json").read_bytes())
    settings = Home(tmp_path).settings()
    assert settings is not None and settings.ports == json.loads((version / "stack.json").read_text())["ports"]
