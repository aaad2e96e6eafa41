"""The MLflow registry on a real server: get-or-create, comparable runs, one version per digest, aliases, outages."""

from __future__ import annotations

import json
import socket
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
import yaml
from measurements import measured
from mlflow import MlflowClient
from onnx_models import digits
from release_world import new_name

from model_registry.mlflow_rest import RegistryError, RegistryHung, RegistryUnavailable
from model_registry.owner import Owner
from model_registry.registry import ModelVersion, Registry
from model_registry.run_page import Dataset, VariantRun

DATASET = Dataset(
    name="digits",
    fingerprint="f" * 64,
    source="s3://winnow/blobs/ab/abc",
    rows={"train": 1000, "validation": 360},
    columns={"image": ("float32", (1, 8, 8)), "target": ("int64", ())},
)
HISTORY = b'{"epoch": 1, "train_loss": 1.5, "note": "x"}\n{"epoch": 2, "train_loss": 0.5}\n'


@pytest.fixture
def model() -> str:
    return new_name()


@pytest.fixture
def registry(mlflow_server: str) -> Registry:
    return Registry(mlflow_server)


@pytest.fixture
def client(mlflow_server: str) -> MlflowClient:
    return MlflowClient(mlflow_server, mlflow_server)


@pytest.fixture(scope="module", autouse=True)
def _import_mlflow() -> None:
    with warnings.catch_warnings(action="ignore"):  # about the type hints of MLflow's own chat models
        import mlflow.onnx
        import mlflow.pyfunc  # noqa: F401


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[VariantRun, Path]]]:
    """A baseline, and a faster variant made from it, with the folders of their files."""
    made = {}
    baseline = None
    for seed, name in enumerate(("teacher", "student")):
        folder = tmp_path_factory.mktemp(name)
        variant = digits(folder, seed=seed).model_copy(update={"name": name})
        numbers = measured(
            name, baseline, digest=variant.digest, p50=1.0 / (seed + 1), flips=(2, 3) if seed else (0, 0)
        )
        baseline = baseline or numbers
        row = VariantRun(
            variant=variant, measurement=numbers, parents=("p" * 64,) if seed else (), method=name, chosen=bool(seed)
        )
        made[name] = (row, folder)
    yield made


def log(registry: Registry, model: str, rows: dict[str, tuple[VariantRun, Path]], run_id: str = "r1") -> Any:
    run = registry.open_run(model, run_id, {"prefect.flow_run_id": "abc"})
    there = registry.already_there(run, [row for row, _ in rows.values()])
    children = {
        name: registry.log_variant(
            run,
            row,
            dataset=DATASET,
            there=there,
            history=HISTORY,
            onnx_file=partial(Path, folder, "model.onnx"),
            example={"image": np.zeros((2, 1, 8, 8), np.float32)},
            tags={"prefect.flow_run_id": "abc"},
            position=position,
        )
        for position, (name, (row, folder)) in enumerate(rows.items())
    }
    return run, children


def test_a_run_and_its_variants_can_be_compared(
    registry: Registry, client: MlflowClient, model: str, rows: dict[str, tuple[VariantRun, Path]]
) -> None:
    run, children = log(registry, model, rows)
    again = log(registry, model, rows)
    assert again == (run, children)  # tried again: the same runs, not second ones

    found = client.search_runs([run.experiment], "tags.`mlflow.parentRunId` != ''")
    assert {r.info.run_name for r in found} == {"teacher", "student"}
    teacher, student = (client.get_run(children[name]) for name in ("teacher", "student"))
    assert teacher.data.metrics.keys() == student.data.metrics.keys()  # the same few names on every variant
    names = {n for n in student.data.metrics if not n.startswith("curve/")}
    assert names == {
        *("accuracy", "d_accuracy", "p50_ms", "p95_ms", "throughput", "speedup", "size_kb", "parameters", "macs"),
        *("peak_rss_mb", "cpu_seconds"),
    }
    assert student.data.metrics["speedup"] == pytest.approx(2.0) and teacher.data.metrics["speedup"] == 1.0
    assert student.data.metrics["d_accuracy"] == pytest.approx(-1 / 360, abs=1e-6)
    assert student.data.params == {"stage": "export", "method": "student"}
    assert student.data.tags["winnow.parent"] == "p" * 64
    assert student.data.tags["winnow.digest"] == rows["student"][0].variant.digest
    assert student.data.tags["winnow.chosen"] == "true" and teacher.data.tags["winnow.chosen"] == "false"
    assert student.data.tags["prefect.flow_run_id"] == "abc"
    assert "2 better, 3 worse" in student.data.tags["mlflow.note.content"]
    assert (student.info.status, student.info.run_name) == ("FINISHED", "student")
    curve = client.get_metric_history(children["student"], "curve/train_loss")
    assert [(m.step, m.value) for m in curve] == [(1, 1.5), (2, 0.5)]
    assert len(client.get_metric_history(children["student"], "p50_ms")) == 1  # written twice, there once
    (data,) = student.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("digits", "f" * 36)
    assert {t.key: t.value for t in data.tags} == {"mlflow.data.context": "validation"}
    assert teacher.info.start_time > student.info.start_time  # the newest is listed first, so the chain is in order
    models = client.search_logged_models([run.experiment])
    assert sorted(m.name for m in models) == ["student", "teacher"]
    assert {m.status.value for m in models} == {"READY"}
    assert {m.key for m in models[0].metrics} == names  # so the Models tab can sort and chart them


def test_the_logged_model_answers(
    registry: Registry, model: str, rows: dict[str, tuple[VariantRun, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, children = log(registry, model, rows)
    row, _ = rows["student"]
    version = registry.create_version(run, children["student"], row.variant.digest, 1, description="d", tags={"a": "b"})
    registry.set_alias(model, "champion", version)
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    loaded = mlflow.pyfunc.load_model(f"models:/{model}@champion")
    answer = loaded.predict({"image": np.ones((3, 1, 8, 8), np.float32)})
    assert answer["logits"].shape == (3, 10)
    assert loaded.metadata.signature.inputs.input_names() == ["image"]
    assert loaded.metadata.saved_input_example_info is not None
    assert loaded.metadata.metadata == {"winnow.digest": row.variant.digest}


def test_one_version_per_digest(
    registry: Registry, model: str, rows: dict[str, tuple[VariantRun, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, children = log(registry, model, rows)
    digest = rows["student"][0].variant.digest
    assert registry.find_version(model, digest) is None and registry.versions(model) == []
    with monkeypatch.context() as broken:
        _break(broken, "model-versions/create")
        with pytest.raises(RegistryUnavailable):
            registry.create_version(run, children["student"], digest, 1, description="", tags={})
    assert registry.versions(model) == []  # nothing half-registered
    assert registry.create_version(run, children["student"], digest, 1, description="", tags={}) == 1
    assert registry.find_version(model, digest) == 1
    assert registry.versions(model) == [ModelVersion(model=model, version=1, digest=digest, run_id="r1", number=1)]


def test_a_lost_version_is_made_again_of_the_model_that_a_run_logged(
    registry: Registry, client: MlflowClient, model: str, rows: dict[str, tuple[VariantRun, Path]]
) -> None:
    run, children = log(registry, model, rows)
    variant = rows["student"][0].variant
    registry.create_version(run, children["student"], variant.digest, 1, description="", tags={})
    client.delete_model_version(model, "1")
    row = registry.restore_version(model, variant, 7, lambda: pytest.fail("it is there already"))
    assert registry.versions(model) == [
        ModelVersion(model=model, version=row, digest=variant.digest, run_id="", number=7)
    ]
    assert client.get_model_version(model, str(row)).run_id == children["student"]


def test_where_the_model_is_lost_too_it_is_made_of_its_file(
    registry: Registry, client: MlflowClient, model: str, rows: dict[str, tuple[VariantRun, Path]]
) -> None:
    row, folder = rows["student"]
    assert registry.restore_version(model, row.variant, 3, lambda: folder / "model.onnx") == 1
    made = client.get_model_version(model, "1")
    assert made.tags["winnow.version"] == "3" and made.description == f"Version 3 of {model}, made again from the store"
    (logged,) = client.search_logged_models([registry.open_run(model, "r1").experiment])
    assert logged.status.value == "READY" and logged.tags["winnow.digest"] == row.variant.digest


def test_a_server_that_hangs_costs_one_answer(model: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never reads from one
        registry = Registry(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.2)
        started = time.monotonic()
        with pytest.raises(RegistryHung, match=r"was not answered within 0.2 s; `winnow logs mlflow`"):
            registry.versions(model)
        assert time.monotonic() - started < 5
    assert not issubclass(RegistryHung, ConnectionError)  # no step is tried again for it


def _break(patch: pytest.MonkeyPatch, ending: str) -> None:
    """Let the connection of every request whose address ends so be reset."""
    request = httpx.Client.request

    def reset(self: httpx.Client, method: str, url: str, **rest: Any) -> httpx.Response:
        if url.endswith(ending):
            raise httpx.ReadError("connection reset")
        return request(self, method, url, **rest)

    patch.setattr(httpx.Client, "request", reset)


def test_a_variant_without_a_model_cannot_be_registered(
    registry: Registry, model: str, rows: dict[str, tuple[VariantRun, Path]]
) -> None:
    run = registry.open_run(model, "r1")
    row, _ = rows["student"]
    child = registry.log_variant(run, row, dataset=DATASET, there=registry.already_there(run, [row]))
    with pytest.raises(RegistryError, match="logged no model"):
        registry.create_version(run, child, row.variant.digest, 1, description="", tags={})


def test_an_upload_that_failed_is_marked_and_made_again(
    registry: Registry,
    client: MlflowClient,
    model: str,
    rows: dict[str, tuple[VariantRun, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as broken:
        _break(broken, "model.onnx")
        with pytest.raises(RegistryUnavailable):
            log(registry, model, rows)
    run, _ = log(registry, model, rows)
    models = client.search_logged_models([run.experiment])
    assert sorted((m.name, m.status.value) for m in models) == [
        ("student", "READY"),
        ("teacher", "FAILED"),
        ("teacher", "READY"),
    ]


def test_a_model_is_kept_once_however_many_runs_made_it(
    registry: Registry, client: MlflowClient, model: str, rows: dict[str, tuple[VariantRun, Path]]
) -> None:
    first, made = log(registry, model, rows)
    row, _ = rows["student"]
    second = registry.open_run(model, "r2")
    there = registry.already_there(second, [row])
    child = registry.log_variant(
        second, row, dataset=DATASET, there=there, onnx_file=lambda: pytest.fail("it is there already")
    )
    models = client.search_logged_models([first.experiment])
    assert len(models) == len(rows)
    (own,) = [m for m in models if m.name == "student"]
    assert client.get_run(child).data.tags["winnow.model_id"] == own.model_id
    assert [m.model_id for m in client.get_run(child).outputs.model_outputs] == [own.model_id]
    assert own.source_run_id == made["student"]
    assert {m.run_id for m in own.metrics} == {made["student"]}  # its page shows the numbers it was logged with
    assert registry.create_version(second, child, row.variant.digest, 1, description="", tags={}) == 1


def test_the_folder_is_the_one_that_mlflow_writes(
    registry: Registry, client: MlflowClient, model: str, rows: dict[str, tuple[VariantRun, Path]], tmp_path: Path
) -> None:
    """Name by name and key by key: whoever reads MLflow's own models reads ours."""
    import mlflow.onnx
    from mlflow.models import Model, infer_signature

    row, folder = rows["student"]
    run, _ = log(registry, model, rows)
    (logged,) = [m for m in client.search_logged_models([run.experiment]) if m.name == "student"]
    example = {"image": np.zeros((2, 1, 8, 8), np.float32)}
    mlflow.onnx.save_model(
        onnx.load_model(folder / "model.onnx"),
        str(tmp_path / "theirs"),
        mlflow_model=Model(model_id=logged.model_id, run_id=logged.source_run_id),
        signature=infer_signature(example, {"logits": np.zeros((2, 10), np.float32)}),
        input_example=example,
        pip_requirements=["onnxruntime", "numpy"],
        onnx_execution_providers=["CPUExecutionProvider"],
        onnx_session_options={"intra_op_num_threads": row.variant.runtime.intra_op_threads},
        save_as_external_data=False,
        metadata={"winnow.digest": row.variant.digest},
    )
    (tmp_path / "ours").mkdir()
    mlflow.artifacts.download_artifacts(
        logged.artifact_location, dst_path=str(tmp_path / "ours"), tracking_uri=registry.uri
    )
    (ours,) = (path.parent for path in (tmp_path / "ours").rglob("MLmodel"))
    assert {p.name for p in ours.iterdir()} == {p.name for p in (tmp_path / "theirs").iterdir()}
    for name in ("input_example.json", "serving_input_example.json", "requirements.txt", "model.onnx"):
        assert (ours / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes(), name
    about, theirs = (yaml.safe_load((f / "MLmodel").read_text()) for f in (ours, tmp_path / "theirs"))
    own_words = {"model_uuid", "utc_time_created"}
    optional = {key for key, value in theirs.items() if value in (None, False)}
    assert about.keys() == theirs.keys() - optional
    for key in about.keys() - own_words - {"signature"}:
        assert about[key] == theirs[key], key
    for side in ("inputs", "outputs"):
        assert json.loads(about["signature"][side]) == json.loads(theirs["signature"][side])


def test_a_server_that_leaves_the_files_to_its_callers(
    registry: Registry, client: MlflowClient, model: str, tmp_path: Path
) -> None:
    client.create_experiment(model, artifact_location=(tmp_path / "artifacts").as_uri())
    run = registry.open_run(model, "r1")
    (tmp_path / "report" / "pages").mkdir(parents=True)
    (tmp_path / "report" / "pages" / "a.html").write_text("<p>hello</p>")
    registry.log_folder(run, tmp_path / "report")
    (written,) = (tmp_path / "artifacts").rglob("a.html")
    assert written.parent.name == "pages" and written.read_text() == "<p>hello</p>"


def test_numbers_that_json_has_no_name_for(
    registry: Registry, client: MlflowClient, model: str, rows: dict[str, tuple[VariantRun, Path]]
) -> None:
    """A training that diverged has them in its curve."""
    run, (row, _) = registry.open_run(model, "r1"), rows["teacher"]
    there = registry.already_there(run, [row])
    child = registry.log_variant(run, row, dataset=DATASET, there=there, history=b'{"epoch": 1, "loss": NaN}\n')
    (point,) = client.get_metric_history(child, "curve/loss")
    assert point.value != point.value


@pytest.mark.parametrize(
    ("status", "in_mlflow"),
    [
        ("released", "FINISHED"),
        ("registered", "FINISHED"),
        ("refused", "FINISHED"),
        ("failed", "FAILED"),
        ("interrupted", "KILLED"),
    ],
)
def test_a_run_ends_as_it_ended(
    registry: Registry,
    client: MlflowClient,
    model: str,
    rows: dict[str, tuple[VariantRun, Path]],
    tmp_path: Path,
    status: Any,
    in_mlflow: str,
) -> None:
    run = registry.open_run(model, "r1")
    assert client.get_run(run.mlflow_id).info.status == "RUNNING"
    registry.log_data(run, DATASET)
    registry.describe_run(run, [rows["student"][0]], dataset=DATASET, note="| a |", tags={"x": "y"})
    (tmp_path / "report.html").write_text("<p>hello</p>")
    registry.log_folder(run, tmp_path)
    registry.end_run(run, status, {"winnow.version": "3"})
    ended = client.get_run(run.mlflow_id)
    assert (ended.info.status, ended.data.tags["winnow.status"]) == (in_mlflow, status)
    assert (ended.data.tags["winnow.version"], ended.data.tags["mlflow.note.content"]) == ("3", "| a |")
    assert ended.data.metrics["p50_ms"] == 0.5  # the chosen variant's
    assert [data.dataset.name for data in ended.inputs.dataset_inputs] == [DATASET.name]
    experiment = client.get_experiment(run.experiment)
    assert json.loads(experiment.tags["mlflow.sharedViewState.variants"])["name"] == "Variants"
    assert "viewStateShareKey=variants" in run.variants_url
    assert [f.path for f in client.list_artifacts(run.mlflow_id)] == ["report.html"]
    where = f"{registry.uri}/#/experiments/{run.experiment}/runs/{run.mlflow_id}"
    assert run.file_url("report.html") == f"{where}/artifacts/report.html?workflowType=machine_learning"


def test_runs_of_dead_processes_are_ended(registry: Registry, client: MlflowClient, model: str) -> None:
    dead = Owner.current().model_copy(update={"started": 1})
    elsewhere = Owner(host="h", space="other", pid=1, started=1)
    registry.open_run(model, "alive")
    gone = registry.open_run(model, "gone", {"winnow.owner": dead.model_dump_json()})
    registry.open_run(model, "elsewhere", {"winnow.owner": elsewhere.model_dump_json()})
    child = client.create_run(gone.experiment, tags={"mlflow.parentRunId": gone.mlflow_id})
    assert registry.end_dead_runs(model) == ["gone"]
    for run_id in (gone.mlflow_id, child.info.run_id):
        assert client.get_run(run_id).info.status == "KILLED"
    assert client.get_run(gone.mlflow_id).data.tags["winnow.status"] == "crashed"
    assert registry.end_dead_runs(model) == []
    late = registry.open_run(model, "late", {"winnow.owner": dead.model_dump_json()})
    assert registry.end_dead_runs(model, {"late": "released"}.get) == ["late"]  # type: ignore[arg-type]
    info = client.get_run(late.mlflow_id)
    assert (info.info.status, info.data.tags["winnow.status"]) == ("FINISHED", "released")


def test_of_two_versions_of_a_digest_the_first_counts(registry: Registry, client: MlflowClient, model: str) -> None:
    assert registry.find_version(model, "d" * 64) is None
    client.create_registered_model(model)
    for digest in ("c" * 64, "d" * 64, "d" * 64):
        client.create_model_version(model, "s3://nowhere/model", tags={"winnow.digest": digest}, await_creation_for=0)
    assert registry.find_version(model, "d" * 64) == 2


def test_aliases(registry: Registry, model: str, rows: dict[str, tuple[VariantRun, Path]]) -> None:
    assert registry.alias(model, "champion") is None  # not even the model is there
    run, children = log(registry, model, rows)
    version = registry.create_version(
        run, children["student"], rows["student"][0].variant.digest, 1, description="", tags={}
    )
    assert registry.alias(model, "champion") is None
    registry.set_alias(model, "champion", version)
    assert registry.alias(model, "champion") == version
    registry.drop_alias(model, "champion")
    registry.drop_alias(model, "champion")
    assert registry.alias(model, "champion") is None


def test_a_deleted_experiment_comes_back(registry: Registry, client: MlflowClient, model: str) -> None:
    run = registry.open_run(model, "r1")
    client.delete_experiment(run.experiment)
    assert registry.open_run(model, "r2").experiment == run.experiment


def test_a_server_that_is_down_is_told_soon() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        registry = Registry(f"http://127.0.0.1:{closed.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(RegistryUnavailable, match="winnow status"):
            registry.versions("m")
        assert time.monotonic() - started < 10
    assert issubclass(RegistryUnavailable, ConnectionError)  # what the steps' policy tries again


def test_no_server_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(RegistryError, match="winnow up"):
        Registry.from_environment()


def test_the_dataset_says_what_it_is() -> None:
    schema = json.loads(DATASET.features_json())["mlflow_tensorspec"]
    assert [c["name"] for c in json.loads(schema["features"])] == ["image"]
    assert json.loads(schema["targets"])[0]["tensor-spec"] == {"dtype": "int64", "shape": [-1]}
    assert json.loads(DATASET.rows_json())["rows_validation"] == 360
