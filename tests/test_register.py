"""track, register and conclude as a run uses them: one version per digest, whoever asks and however often."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured_models import linear, make_data, make_job, make_variant
from measurements import measured
from mlflow import MlflowClient
from release_world import new_name

from model_registry.measurement import Measurement
from model_registry.owner import Owner
from model_registry.recording import replay
from model_registry.registry import Registry
from model_registry.run_page import VariantRun
from model_registry.store import Store
from model_registry.variant import Variant
from model_registry.versions import Versions
from tasks.evidence.arrays import fetch_arrays, publish_arrays
from tasks.evidence.split_inputs import split_inputs
from tasks.release.register import register
from tasks.release.show_versions import show_versions
from tasks.running.splits import DataRef
from tasks.running.stage import Job
from tasks.track import conclude, track


@pytest.fixture
def job(store: Store, mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    return make_job(store, tmp_path).model_copy(update={"model": new_name()})


def measurement(store: Store, job: Job, data: DataRef, variant: Variant, baseline: Measurement | None) -> Measurement:
    """Made-up numbers, but true predictions: what an endpoint will have to answer."""
    inputs = fetch_arrays(store, split_inputs(job, data)["validation"])
    outputs = inputs["x"] @ linear(seed=1 if baseline else 0)
    predictions = publish_arrays(store, "predictions.npz", outputs=outputs.astype(np.float32))
    return measured(variant.name, baseline, digest=variant.digest, predictions=predictions)


@pytest.fixture
def rows(store: Store, job: Job) -> tuple[DataRef, tuple[VariantRun, ...]]:
    data = make_data(store)
    made: list[VariantRun] = []
    baseline = None
    for seed, name in enumerate(("teacher", "student")):
        variant = make_variant(store, name, linear(seed=seed, noise=0.1 * seed))
        numbers = measurement(store, job, data, variant, baseline)
        baseline = baseline or numbers
        history = store.publish_bytes(b'{"epoch": 1, "loss": 1.0}\n', "history.jsonl")
        made.append(VariantRun(variant=variant, measurement=numbers, history=history, chosen=bool(seed)))
    return data, tuple(made)


def test_a_run_is_tracked_registered_and_concluded(
    store: Store, job: Job, rows: tuple[DataRef, tuple[VariantRun, ...]], tmp_path: Path
) -> None:
    data, variants = rows
    origin = {"mlflow.source.git.commit": "c" * 40, "prefect.flow_run_id": "p1"}
    tracked = track.task.fn(job, data=data, rows=variants, origin=origin, links={"prefect": "http://p"})
    assert track.task.fn(job, data=data, rows=variants, origin=origin) == tracked  # tried again, nothing doubled
    assert tracked.children.keys() == {v.variant.digest for v in variants}

    chosen = variants[1]
    assert chosen.measurement is not None
    versions = register.task.fn(job, data=data, variant=chosen.variant, measurement=chosen.measurement)
    version = versions[chosen.variant.digest]
    registry = Registry.from_environment()
    assert (version, registry.versions(job.model)) == (1, [])  # it is registered, whether MLflow shows it or not
    digest = chosen.variant.digest
    for _ in range(2):  # tried again, nothing doubled
        show_versions.task.fn(job, versions=versions, chosen=digest, rows=variants, tracked=tracked)
    assert (version, registry.alias(job.model, "challenger"), registry.alias(job.model, "champion")) == (1, 1, None)
    (row,) = registry.versions(job.model)
    assert (row.digest, row.number, row.run_id) == (digest, 1, job.run_id)
    assert Versions(store).all(job.model) == {1: digest}
    recording, inputs, outputs = replay(store, chosen.variant.digest)
    assert (recording.rows, recording.output, inputs["x"].shape, outputs.shape) == (16, "logits", (16, 4), (16, 3))

    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.html").write_text("<p>docs</p>")
    (tmp_path / "report.html").write_text("<p>report</p>")
    files = {"report.html": tmp_path / "report.html", "data_docs": tmp_path / "docs"}
    page = conclude.task.fn(tracked, status="released", rows=variants, files=files, tags={"winnow.version": "1"})
    assert page == tracked.run.url
    client = MlflowClient(registry.uri)
    parent = client.get_run(tracked.run.mlflow_id)
    assert (parent.info.status, parent.data.tags["winnow.status"]) == ("FINISHED", "released")
    assert (parent.data.tags["mlflow.source.git.commit"], parent.data.tags["winnow.data"]) == ("c" * 40, "f" * 64)
    assert f"[report.html]({tracked.run.file_url('report.html')})" in parent.data.tags["mlflow.note.content"]
    assert sorted(f.path for f in client.list_artifacts(tracked.run.mlflow_id)) == ["data_docs", "report.html"]
    assert [f.path for f in client.list_artifacts(tracked.run.mlflow_id, "data_docs")] == ["data_docs/index.html"]


def test_the_same_digest_from_two_runs_at_once_is_one_version(
    store: Store, job: Job, rows: tuple[DataRef, tuple[VariantRun, ...]]
) -> None:
    data, variants = rows
    chosen = variants[1]
    jobs = [job.model_copy(update={"run_id": f"run-{i}"}) for i in range(3)]
    tracked = [track.task.fn(j, data=data, rows=variants) for j in jobs]
    versions: list[int] = []

    def go(index: int) -> None:
        assert chosen.measurement is not None
        made = register.task.fn(
            jobs[index],
            data=data,
            variant=chosen.variant,
            measurement=chosen.measurement,
        )
        show_versions.task.fn(
            jobs[index], versions=made, chosen=chosen.variant.digest, rows=variants, tracked=tracked[index]
        )
        versions.append(made[chosen.variant.digest])

    threads = [threading.Thread(target=go, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert versions == [1, 1, 1]
    assert len(Registry.from_environment().versions(job.model)) == 1


def test_without_mlflow_a_version_is_registered_all_the_same_and_shown_later(
    store: Store, job: Job, rows: tuple[DataRef, tuple[VariantRun, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, (other, chosen) = rows
    assert other.measurement is not None and chosen.measurement is not None
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        first = register.task.fn(job, data=data, variant=other.variant, measurement=other.measurement)
    assert first == {other.variant.digest: 1}
    tracked = track.task.fn(job, data=data, rows=(other, chosen))
    second = register.task.fn(job, data=data, variant=chosen.variant, measurement=chosen.measurement)
    assert second == {chosen.variant.digest: 2}
    digest = chosen.variant.digest
    show_versions.task.fn(job, versions=second, chosen=digest, rows=(other, chosen), tracked=tracked)
    shown = Registry.from_environment().versions(
        job.model
    )  # the first one too, so that MLflow counts as the store does
    assert [(row.version, row.number, row.digest) for row in shown] == [(1, 1, other.variant.digest), (2, 2, digest)]


def test_versions_that_only_mlflow_knows_keep_their_numbers(
    job: Job, rows: tuple[DataRef, tuple[VariantRun, ...]]
) -> None:
    """Registered before the store kept the numbers; another one by hand."""
    data, (known, new) = rows
    assert known.measurement is not None and new.measurement is not None
    client = MlflowClient(Registry.from_environment().uri)
    client.create_registered_model(job.model)
    for tags in ({"winnow.digest": known.variant.digest}, {}):
        client.create_model_version(job.model, "s3://nowhere/model", tags=tags, await_creation_for=0)
    assert register.task.fn(job, data=data, variant=known.variant, measurement=known.measurement) == {
        known.variant.digest: 1
    }
    assert register.task.fn(job, data=data, variant=new.variant, measurement=new.measurement) == {new.variant.digest: 3}


def test_a_front_is_registered_as_one_set_and_the_alias_is_that_of_the_chosen_one(
    store: Store, job: Job, rows: tuple[DataRef, tuple[VariantRun, ...]]
) -> None:
    data, (other, chosen) = rows
    tracked = track.task.fn(job, data=data, rows=(other, chosen))
    arguments: dict[str, Any] = {
        "variant": chosen.variant,
        "measurement": chosen.measurement,
        "others": (other,),
    }
    versions = register.task.fn(job, data=data, **arguments)
    assert versions == {other.variant.digest: 1, chosen.variant.digest: 2}
    assert register.task.fn(job, data=data, **arguments) == versions  # tried again, nothing doubled
    rows_of_run = (other, chosen)
    show_versions.task.fn(job, versions=versions, chosen=chosen.variant.digest, rows=rows_of_run, tracked=tracked)
    registry = Registry.from_environment()
    assert registry.alias(job.model, "challenger") == 2
    client = MlflowClient(registry.uri)
    assert [client.get_model_version(job.model, str(v)).tags["winnow.front"] for v in (1, 2)] == ["1, 2", "1, 2"]
    for row in (other, chosen):  # each can be put into service later
        assert replay(store, row.variant.digest)[0].rows == 16


def test_runs_that_were_killed_are_ended_by_the_next(job: Job, rows: tuple[DataRef, tuple[VariantRun, ...]]) -> None:
    data, variants = rows
    registry = Registry.from_environment()
    dead = Owner.current().model_copy(update={"started": 1})
    killed = registry.open_run(job.model, "killed", {"winnow.owner": dead.model_dump_json()})
    track.task.fn(job, data=data, rows=variants)
    assert MlflowClient(registry.uri).get_run(killed.mlflow_id).info.status == "KILLED"


def test_a_variant_too_large_for_mlflow_is_kept_there_only_if_chosen(
    store: Store, job: Job, rows: tuple[DataRef, tuple[VariantRun, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.track.MODEL_LIMIT_BYTES", 10)
    data, variants = rows
    tracked = track.task.fn(job, data=data, rows=variants)
    models = MlflowClient(Registry.from_environment().uri).search_logged_models([tracked.run.experiment])
    assert [m.name for m in models] == ["student"]
