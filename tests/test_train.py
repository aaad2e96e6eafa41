"""The train stage: in a real child process, cached, resumed after kill -9, and lean.

Processes cost seconds, so where the process is not the point, its entry runs in this one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from model_registry.store import Store
from tasks.running import launch
from tasks.running.child import Child, Result
from tasks.running.errors import ChildFailed, TrainingDiverged
from tasks.running.splits import DataRef, read_split
from tasks.running.stage import Job, Limits, WorkloadRef
from tasks.running.stage_cache import log_folder, run_stage
from tasks.torch_models.fit import fit
from tasks.torch_models.fit_rows import evaluate
from tasks.torch_models.torch_variant import build, load
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData
from tasks.train import TRAIN, TrainSpec, train_child
from tasks.workloads.workload import load_workload

if TYPE_CHECKING:
    from taught_workloads import job_for, put_data, taught
else:  # tests/ is no package at run time
    from taught_workloads import job_for, put_data, taught

QUICK = TrainSpec(epochs=4, batch_size=32, learning_rate=5e-3)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))


def test_the_teacher_is_trained_and_its_curves_are_kept(store: Store) -> None:
    workload = taught("Squares")
    data, job = put_data(store, workload), job_for(store, workload.ref)
    outcome = run_stage(TRAIN, job, QUICK, data=data)
    assert outcome.status == "computed"
    assert (outcome.variant.name, outcome.variant.stage, outcome.variant.format) == ("teacher", "train", "torch")
    model = load(store, outcome.variant, workload=workload)
    validation = read_split(store, data, "validation")
    loss, metric, _ = evaluate(model, workload=workload, columns=validation, device="cpu")
    assert metric == outcome.values["val_metric"] > 0.9
    assert loss == pytest.approx(outcome.values["val_loss"], rel=1e-5)
    curves = outcome.file("teacher.history.jsonl")
    assert curves is not None
    rows = [json.loads(line) for line in store.fetch_bytes(curves).splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert outcome.values["parameters"] == sum(p.numel() for p in model.parameters())
    log = (log_folder("r1") / "train.log").read_text()
    assert "epoch 4/4: loss" in log
    assert run_stage(TRAIN, job, QUICK, data=data).status == "reused"


def request(job: Job, data: DataRef, *, key: str, **spec: Any) -> dict[str, Any]:
    return {
        "entry": TRAIN.entry,
        "job": job.model_dump(mode="json"),
        "spec": {**QUICK.model_dump(mode="json"), **spec},
        "data": data.model_dump(mode="json"),
        "inputs": {},
        "extra": {},
        "key": key,
        "workdir": "unused",
    }


def in_a_process(asked: dict[str, Any], log: Path) -> dict[str, Any]:
    return launch.run_child(asked, name="train", limits=Limits(), log_path=log, threads=1)


def here(asked: dict[str, Any]) -> Result:
    messages = os.open(os.devnull, os.O_WRONLY)
    try:
        return train_child.main(Child(asked, messages))
    finally:
        os.close(messages)


def test_equal_seeds_give_equal_digests_and_another_seed_another_one(store: Store) -> None:
    workload = taught("Blobs", dropout=0.2)
    data = put_data(store, workload)
    digests = [
        here(request(job_for(store, workload.ref, seed=seed), data, key=run)).variants[0].digest
        for run, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_killed_training_goes_on_and_ends_in_the_same_digest(store: Store, tmp_path: Path) -> None:
    workload = taught("Blobs", dropout=0.2)
    data, job = put_data(store, workload), job_for(store, workload.ref)
    straight = here(request(job, data, key="straight", epochs=60))

    def kill() -> None:
        while not store.list_objects("checkpoints/killed/"):
            time.sleep(0.02)
        for process in list(launch._table.values()):
            os.kill(process.popen.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ChildFailed, match="SIGKILL"):
        in_a_process(request(job, data, key="killed", epochs=60), tmp_path / "first")
    killer.join()
    resumed = in_a_process(request(job, data, key="killed", epochs=60), tmp_path / "second")
    assert "going on from the checkpoint after epoch" in (tmp_path / "second").read_text()
    assert resumed["variants"][0]["digest"] == straight.variants[0].digest
    assert resumed["values"] == straight.values
    assert [f["sha256"] for f in resumed["files"]] == [f.sha256 for f in straight.files]


def test_errors_arrive_by_name(store: Store, tmp_path: Path) -> None:
    workload = taught("Blobs")
    asked = request(
        job_for(store, workload.ref), put_data(store, workload), key="k", learning_rate=1e30, optimizer="sgd"
    )
    with pytest.raises(TrainingDiverged, match="lower learning_rate") as caught:
        in_a_process(asked, tmp_path / "log")
    assert caught.value.details["epoch"] == 1


@pytest.mark.slow
def test_the_defaults_suit_the_digits() -> None:
    """Validation 0.99 to 1.00 and test 0.98 to 0.99 are usual, in two seconds."""
    workload = load_workload(WorkloadRef(path="tasks.workloads.digits:Digits"))
    splits = workload.splits()
    settings = TrainSpec().model_dump()
    model = build(workload, "teacher", settings["scale"])
    data = TrainingData(workload, splits["train"], splits["validation"])
    fitted = fit(model, data, Training.of(settings), device="cpu")
    assert fitted.val_metric >= 0.98
    assert evaluate(model, workload=workload, columns=splits["test"], device="cpu")[1] >= 0.965


def test_the_child_imports_no_more_than_it_needs() -> None:
    """A second of imports is a second of every stage."""
    code = (
        "import sys; from tasks.running.child import _skip_stage_packages; _skip_stage_packages();"
        "import tasks.train.train_child; import tasks.distill.distill_child; import tasks.workloads.digits;"
        "print(sorted({'prefect', 'pandas', 'sklearn', 'scipy', 'onnx', 'onnxruntime', 'mlflow', 'torch_pruning', "
        "'torch._dynamo', 'great_expectations', 'boto3'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert found.stdout.strip() == "[]"
