"""``winnow init`` and ``winnow schema``: what they write can be used as it is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.commands.command_init import init_command, schema_command
from flows.spec import SPECS, load_spec
from model_registry.store import Store
from tasks.data import check_data, data_ref
from tasks.readers.sources import fingerprint
from tasks.running.stage import Job

pytestmark = pytest.mark.slow  # trains what it scaffolds

CLASSES = {"tabular": ("runs", "fails"), "images": ("circle", "cross", "square")}


def scaffold(folder: Path, kind: str) -> Path:
    answer = CliRunner().invoke(init_command, [str(folder), "--kind", kind])
    assert answer.exit_code == 0, answer.output
    assert f"run it: winnow run {folder / 'spec.yaml'}" in answer.output
    return folder


@pytest.mark.parametrize("kind", CLASSES)
def test_the_scaffold_passes_its_data_checks(
    kind: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    folder = scaffold(tmp_path / f"my-{kind}", kind)
    spec = load_spec(folder / "spec.yaml")
    assert spec.distill and spec.prune and spec.quantize
    assert "from winnow import" in (folder / "workload.py").read_text()
    assert not re.search(r"\b(flows|tasks|serving|model_registry)\b", (folder / "workload.py").read_text())
    assert len(fingerprint(spec.workload.arguments, folder)) == 1, "changed sample data is noticed"
    job = Job(run_id="r", model=spec.model, store=store.uri, workload=spec.workload)
    outcome = check_data.task.fn(job, spec.data)
    assert outcome.values["warnings"] == []
    data = data_ref(outcome)
    assert data.labels == CLASSES[kind] and data.split("test").rows >= 59, "5 points need 59 samples"


@pytest.mark.parametrize("kind", CLASSES)
def test_the_scaffold_learns(kind: str, tmp_path: Path) -> None:
    folder = scaffold(tmp_path / "net", kind)  # the name of a class in the file, too
    spec = load_spec(folder / "spec.yaml")
    assert spec.distill is not None
    # A process of its own: both kinds have a module called workload.
    program = """
import sys, torch
from tasks.running.stage import WorkloadRef
from tasks.workloads.workload import load_workload
torch.set_num_threads(1)
torch.manual_seed(0)
workload = load_workload(WorkloadRef.model_validate_json(sys.argv[1]))
splits = {name: {k: torch.from_numpy(v) for k, v in columns.items()} for name, columns in workload.splits().items()}
student, model = workload.model("student", width=float(sys.argv[2])), workload.model("teacher")
assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in model.parameters())
optimizer = torch.optim.Adam(model.parameters(), 0.02)
inputs, targets = workload.batch(splits["train"])
inputs = workload.preprocess(inputs)
for _ in range(60):
    loss = workload.loss(model(**inputs), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
inputs, targets = workload.batch(splits["validation"])
found = model(**workload.preprocess(inputs)).detach().numpy()
print(workload.metric(targets.numpy()).per_sample(found, targets.numpy()).mean())
"""
    line = [sys.executable, "-c", program, spec.workload.model_dump_json(), str(spec.distill.scale["width"])]
    answer = subprocess.run(line, cwd="/", capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert float(answer.stdout) > 0.9


@pytest.mark.parametrize("name", ["none", "1e5", "my.model-v2", "true"])
def test_any_model_name_gives_a_spec_that_loads_and_code_that_compiles(name: str, tmp_path: Path) -> None:
    folder = scaffold(tmp_path / name, "tabular")
    spec = load_spec(folder / "spec.yaml")
    assert spec.model == name
    names: dict[str, object] = {}
    exec(compile((folder / "workload.py").read_text(), "workload.py", "exec"), names)
    assert isinstance(names[spec.workload.path.partition(":")[2]], type)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "workload.py").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name in ("mine", "file"):
        answer = CliRunner().invoke(init_command, [str(tmp_path / name)])
        assert answer.exit_code == 2 and "is there already" in answer.output
    assert (tmp_path / "mine" / "workload.py").read_text() == (tmp_path / "file").read_text() == "precious"
    assert len(list((tmp_path / "mine").iterdir())) == 1


@pytest.mark.parametrize("name", ["bad name", ".hidden", "x" * 65, "slash:"])
def test_names_that_cannot_name_a_model_are_refused(name: str, tmp_path: Path) -> None:
    answer = CliRunner().invoke(init_command, [str(tmp_path / name)])
    assert answer.exit_code == 2 and "cannot name a model" in answer.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [init_command, schema_command])
def test_help_shows_an_example(command: object) -> None:
    answer = CliRunner().invoke(command, ["--help"])  # type: ignore[arg-type]
    assert answer.exit_code == 0 and "Example:\n    winnow " in answer.output


def test_the_schema_accepts_the_shipped_specs_and_refuses_others(tmp_path: Path) -> None:
    path = tmp_path / "spec.schema.json"
    assert CliRunner().invoke(schema_command, ["-o", str(path)]).exit_code == 0
    assert json.loads(CliRunner().invoke(schema_command, []).output) == json.loads(path.read_text())
    (tmp_path / "short.yaml").write_text("model: m\nworkload: a.b:C\ndeploy: false\n")
    good = [*map(str, sorted(SPECS.glob("*.yaml"))), str(tmp_path / "short.yaml")]
    (tmp_path / "bad.yaml").write_text("model: m\nworkload: a.b:C\nprunes: {}\n")

    def check(files: list[str]) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "check_jsonschema", "--schemafile", str(path), *files]
        return subprocess.run(line, capture_output=True, text=True, check=False)

    accepted = check(good)
    assert accepted.returncode == 0, accepted.stdout
    refused = check([str(tmp_path / "bad.yaml")])
    assert refused.returncode == 1 and "prunes" in refused.stdout


@pytest.mark.parametrize("path", sorted(SPECS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_specs_load_and_open_with_the_command_that_runs_them(path: Path) -> None:
    assert load_spec(path).schema_version == 1
    first = path.read_text().splitlines()[0]
    assert first.startswith(f"# winnow run {path.stem}")
