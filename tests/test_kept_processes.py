"""Stages that share a process answer as they do in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from forked_stages import WHERE

from model_registry.store import Store
from tasks.data import DataSpec, check_data, data_ref
from tasks.distill import DistillSpec, distill
from tasks.export import ExportSpec, export
from tasks.running import launch
from tasks.running.stage import Job, WorkloadRef
from tasks.train import TrainSpec, train


@pytest.fixture(autouse=True)
def interpreters_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started as users have them."""
    monkeypatch.delenv(WHERE, raising=False)


def _chain(store: Store, seed: int) -> list[str]:
    """Digests of teacher, student, control and the exported student."""
    workload = WorkloadRef(path="tasks.workloads.digits:Digits", arguments={"rows": 200})
    job = Job(run_id=f"run-{seed}", model="m", store=store.uri, workload=workload, seed=seed, device="cpu")
    data = data_ref(check_data.task.fn(job, DataSpec()))
    teacher = train.task.fn(job, TrainSpec(epochs=2, scale={"width": 0.25}), data=data).variant
    taught = distill.task.fn(job, DistillSpec(epochs=2, scale={"width": 0.125}), data=data, teacher=teacher).variants
    file = export.task.fn(job, ExportSpec(), data=data, parent=taught[0]).variant
    return [v.digest for v in (teacher, *taught, file)]


def test_the_same_digests_in_shared_and_in_fresh_processes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    with launch.kept_processes():
        _chain(store, seed=1)  # another seed first: what it leaves behind must not matter
        shared = _chain(store, seed=2)
    monkeypatch.setenv("WINNOW_STORE", store.uri + "-fresh")
    fresh = Store.from_environment()
    fresh.prepare()
    assert _chain(fresh, seed=2) == shared
