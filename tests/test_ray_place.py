"""Stages on the nodes of a Ray cluster: the same results, logs and errors as here, also when a node is lost."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from measured_models import linear, make_data, make_job, make_variant
from nodes import kill_one_at_work, left_of, on_nodes
from patience import PATIENCE, wait_for
from pydantic import ValidationError
from taught_workloads import job_for, put_data, taught

from flows.spec import PipelineSpec
from model_registry.cpu_class import machine_name
from model_registry.store import Store
from model_registry.variant import Variant
from tasks.measure import CLOCK, MeasureSpec, measure, measurement_of
from tasks.running import ray_nodes
from tasks.running.errors import SpecError, StageTimedOut, TrainingDiverged
from tasks.running.measuring_machine import require_machines
from tasks.running.ray_local_cluster import LocalCluster
from tasks.running.ray_nodes import Surroundings, require_cluster
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Limits, Parallel
from tasks.running.stage_cache import run_stage
from tasks.running.stage_call import StageCall
from tasks.train import TRAIN, TrainSpec

HERE = Path(__file__).parent
QUICK = TrainSpec(epochs=3, batch_size=32, patience=None)
LONG = TrainSpec(epochs=60, batch_size=16, patience=None)
Compute = Callable[[Job, TrainSpec], Variant]


# -- without a cluster ---------------------------------------------------------------------------------------------
def test_the_place_is_no_part_of_a_results_identity() -> None:
    spec = {"schema": 1, "model": "m", "workload": "tasks.workloads.digits:Digits"}
    assert PipelineSpec.model_validate({**spec, "workload": {"path": spec["workload"]}, "place": "ray"}).place == "ray"
    with pytest.raises(ValidationError, match="place"):
        PipelineSpec.model_validate({**spec, "workload": {"path": spec["workload"]}, "place": "moon"})


def test_a_missing_ray_is_said_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        SpecError, match=r"place: ray needs Ray, which is not installed: pip install 'winnow-mlops\[ray\]'"
    ):
        require_cluster()


def test_nodes_that_would_answer_otherwise_say_why() -> None:
    here = Surroundings.here("taught_workloads", str(HERE))
    assert here.differences(here) == []
    other = replace(here, python="3.9", workload="not there: no module mine")
    assert here.differences(other) == [
        f"Python is 3.9 and not {here.python}",
        f"the workload's code is not there: no module mine and not {here.workload}",
    ]
    assert "no_such_module" in Surroundings.here("no_such_module", None).workload


def test_machines_that_measure_are_looked_for_before_anything_is_computed(task: tuple[Job, DataRef]) -> None:
    job, _ = task
    require_machines(job)
    require_machines(job.model_copy(update={"measure_on": machine_name()}))
    with pytest.raises(SpecError, match=rf"this machine is '{re.escape(machine_name())}'.*place: ray"):
        require_machines(job.model_copy(update={"measure_on": "PDP-11, 1 cores"}))


def test_measurements_of_named_machines_are_those_of_any_of_them(
    task: tuple[Job, DataRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, data = task

    def key(job: Job) -> str:
        return StageCall(CLOCK, job, MeasureSpec(), data).key

    named = job.model_copy(update={"measure_on": machine_name()})
    before = key(job), key(named)
    monkeypatch.setattr("tasks.running.stage_call.socket.gethostname", lambda: "elsewhere")
    assert (key(job) == before[0], key(named) == before[1]) == (False, True)
    assert key(named.model_copy(update={"measure_on": "PDP-11, 1 cores"})) != before[1]


# -- on a cluster --------------------------------------------------------------------------------------------------
@pytest.fixture
def task(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Job, DataRef]:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path))
    workload = taught("Blobs", dropout=0.2)
    return job_for(store, workload.ref), put_data(store, workload)


def elsewhere(job: Job, **changes: Any) -> Job:
    return job.model_copy(update={"place": "ray", **changes})


@pytest.fixture
def computed_here(store: Store, monkeypatch: pytest.MonkeyPatch) -> Compute:
    """The same training on this machine, in a store where it cannot be found again."""

    def compute(job: Job, spec: TrainSpec) -> Variant:
        monkeypatch.setenv("WINNOW_STORE", store.uri + "-fresh")
        fresh = Store.from_environment()
        fresh.prepare()
        here = job.model_copy(update={"place": "local", "store": fresh.uri})
        outcome = run_stage(TRAIN, here, spec, data=put_data(fresh, taught("Blobs", dropout=0.2)))
        assert outcome.status == "computed"
        return outcome.variant

    return compute


@pytest.mark.ray
def test_a_stage_makes_the_same_on_a_node(
    task: tuple[Job, DataRef], cluster: LocalCluster, tmp_path: Path, computed_here: Compute
) -> None:
    job, data = task
    away = run_stage(TRAIN, elsewhere(job), QUICK, data=data)
    assert away.status == "computed" and "node" in away.host
    assert "epoch 3/3" in (tmp_path / "runs" / job.run_id / "train.log").read_text()
    assert run_stage(TRAIN, job, QUICK, data=data).status == "reused", "wherever it was made"
    assert computed_here(job, QUICK) == away.variant


@pytest.mark.ray
def test_ranks_on_several_nodes_make_the_bits_of_one_process_here(
    task: tuple[Job, DataRef], cluster: LocalCluster, computed_here: Compute, tmp_path: Path
) -> None:
    job, data = task
    for processes, nodes in ((2, 1), (4, 2)):  # a node has two cores
        shared = job.model_copy(update={"parallel": Parallel(shards=4, processes=processes), "seed": processes})
        away = run_stage(TRAIN, elsewhere(shared), QUICK, data=data)
        assert len(re.findall(r"node [0-9a-f]{8}", away.host)) == nodes
    assert "epoch 3/3" in (tmp_path / "runs" / job.run_id / "train-rank4.log").read_text()
    alone = shared.model_copy(update={"parallel": Parallel(shards=4, processes=1)})
    assert run_stage(TRAIN, alone, QUICK, data=data).status == "reused"
    assert computed_here(alone, QUICK) == away.variant


@pytest.mark.ray
def test_errors_and_limits_are_those_of_a_stage(task: tuple[Job, DataRef], cluster: LocalCluster) -> None:
    job, data = task
    with pytest.raises(TrainingDiverged, match="lower learning_rate"):
        run_stage(TRAIN, elsewhere(job), QUICK.model_copy(update={"learning_rate": 1e30}), data=data)
    slow = elsewhere(job, limits={"train": Limits(seconds=2.0)})
    with pytest.raises(StageTimedOut, match="past its limit of 2 s"):
        run_stage(TRAIN, slow, LONG.model_copy(update={"epochs": 5000}), data=data)
    many = elsewhere(job, parallel=Parallel(shards=8, processes=8))
    with pytest.raises(SpecError, match="wants 8 processes, and the cluster's nodes have 4 cores altogether"):
        run_stage(TRAIN, many, QUICK, data=data)
    with pytest.raises(SpecError, match="a stage wants 64 cores, and the largest node has 2"):
        run_stage(TRAIN, elsewhere(job, threads=64), QUICK, data=data)


def struck_in_training(store: Store) -> threading.Thread:
    """Kills a node that is at work as soon as there is a checkpoint."""

    def strike() -> None:
        while not store.list_objects("checkpoints/"):
            time.sleep(0.05)
        kill_one_at_work()

    thread = threading.Thread(target=strike, daemon=True)
    thread.start()
    return thread


@pytest.mark.ray
def test_a_training_on_two_nodes_goes_on_upon_the_one_that_is_left(
    task: tuple[Job, DataRef],
    cluster: LocalCluster,
    store: Store,
    caplog: pytest.LogCaptureFixture,
    computed_here: Compute,
) -> None:
    job, data = task
    caplog.set_level(logging.WARNING, logger="winnow.ranks")
    shared = job.model_copy(update={"parallel": Parallel(shards=4, processes=4)})
    thread = struck_in_training(store)
    away = run_stage(TRAIN, elsewhere(shared), LONG, data=data)
    thread.join(10)
    assert "the 4 processes start again, from the last checkpoint" in caplog.text
    assert len(re.findall(r"node [0-9a-f]{8}", away.host)) == 1
    assert computed_here(shared.model_copy(update={"parallel": Parallel(shards=4, processes=1)}), LONG) == away.variant
    assert not any(ray_nodes.busy.values()) and left_of("tasks.running.child") == []
    cluster.add_node()


@pytest.mark.ray
def test_a_lost_node_costs_nothing_but_time(
    task: tuple[Job, DataRef],
    cluster: LocalCluster,
    store: Store,
    caplog: pytest.LogCaptureFixture,
    computed_here: Compute,
) -> None:
    job, data = task
    caplog.set_level(logging.WARNING, logger="winnow.ray")
    thread = struck_in_training(store)
    away = run_stage(TRAIN, elsewhere(job), LONG, data=data)
    thread.join(10)
    assert not thread.is_alive() and "was lost; it is placed again" in caplog.text
    assert computed_here(job, LONG) == away.variant


@pytest.mark.ray
def test_a_command_runs_beside_a_cluster_that_ends_with_it(store: Store, tmp_path: Path) -> None:
    script = (
        "import os, ray; ray.init(address=os.environ['RAY_ADDRESS']); "
        "print(len(ray.nodes()), os.environ['WINNOW_STORE'])"
    )
    cluster = [sys.executable, "-m", "flows.commands.cli", "cluster", "--nodes", "1", "--"]
    done = subprocess.run(
        [*cluster, sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"2 {store.uri}" in done.stdout
    left = [p for p in psutil.process_iter(["cmdline"]) if "ray_local_cluster" in " ".join(p.info["cmdline"] or [])]
    assert len(left) <= 1, "only that of the other tests"


@pytest.mark.ray
def test_nodes_of_the_named_machines_measure_and_others_do_not(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: LocalCluster
) -> None:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    quick = MeasureSpec(rounds=5, seconds=0.1)
    job, data = make_job(store, tmp_path), make_data(store)
    variant = make_variant(store, "teacher", linear())
    stays = measure.task.fn(elsewhere(job), quick, data=data, variant=variant)
    assert ", node " not in stays.host, "nothing is said: the machine that orchestrates measures"

    named = elsewhere(job, measure_on=machine_name())
    require_machines(named)
    away = measure.task.fn(named, quick, data=data, variant=variant)
    assert away.status == "computed" and ", node " in away.host
    found = measurement_of(away)
    assert f"{found.hardware.cpu}, {found.hardware.cores} cores" == machine_name()
    assert measure.task.fn(named, quick, data=data, variant=variant).status == "reused"
    here = named.model_copy(update={"place": "local"})
    assert measure.task.fn(here, quick, data=data, variant=variant).status == "reused", "any such machine will do"

    missing = elsewhere(job, measure_on="PDP-11, 1 cores")
    for ask in (require_machines, lambda job: measure.task.fn(job, quick, data=data, variant=variant)):
        with pytest.raises(SpecError, match=rf"the machine is '{re.escape(machine_name())}' and not 'PDP-11, 1 cores'"):
            ask(missing)


@pytest.mark.ray
def test_what_measures_on_a_node_is_alone_there(
    task: tuple[Job, DataRef], store: Store, tmp_path: Path, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both nodes are on this machine: a training on the one is waited for by the other's measurement."""
    job, data = task
    variant, quick = make_variant(store, "teacher", linear()), MeasureSpec(rounds=5, seconds=0.1)
    ended: list[str] = []

    def train() -> None:
        run_stage(TRAIN, elsewhere(job), LONG, data=data)
        ended.append("training")

    thread = threading.Thread(target=train)
    thread.start()
    wait_for(lambda: bool(on_nodes("tasks.running.child")), what="the training", every=0.05)
    job = make_job(store, tmp_path).model_copy(update={"place": "ray", "measure_on": machine_name()})
    assert measure.task.fn(job, quick, data=make_data(store), variant=variant).status == "computed"
    ended.append("measurement")
    thread.join(PATIENCE)
    assert ended == ["training", "measurement"]
