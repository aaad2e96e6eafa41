"""A stage that processes train together: killed, hung and restarted, with the undisturbed result."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
import pytest

from model_registry.store import Store
from tasks import export, prune
from tasks.export import ExportSpec
from tasks.prune import PruneSpec
from tasks.running import launch, ranked
from tasks.running.errors import ChildFailed, SpecError, StageOutOfMemory
from tasks.running.ranked import run_ranks
from tasks.running.ranks import interface_of
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Limits, Parallel, WorkloadRef
from tasks.running.stage_cache import run_stage
from tasks.running.stage_call import StageCall
from tasks.train import TRAIN, TrainSpec

if TYPE_CHECKING:
    from taught_workloads import job_for, put_data, taught
else:  # tests/ is no package at run time
    from taught_workloads import job_for, put_data, taught

SHARED = Parallel(shards=4, processes=2)
QUICK = TrainSpec(epochs=3, batch_size=32, patience=None)
LONG = TrainSpec(epochs=40, batch_size=32, patience=None)
WIDE = 12.0
"""Of a model with more than 100 000 parameters."""


@pytest.fixture
def task(store: Store) -> tuple[Job, DataRef]:
    workload = taught("Blobs", dropout=0.2)
    return job_for(store, workload.ref).model_copy(update={"parallel": SHARED}), put_data(store, workload)


def request(task: tuple[Job, DataRef], folder: Path, *, key: str, spec: TrainSpec = QUICK) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return {**StageCall(TRAIN, task[0], spec, task[1]).request(str(folder)), "key": key}


def train(task: tuple[Job, DataRef], folder: Path, *, ranks: int, key: str, **how: Any) -> str:
    spec = how.pop("spec", QUICK)
    asked = request(task, folder, key=key, spec=spec)
    common = {"name": "train", "limits": Limits(), "log_path": folder / "train.log", "threads": 1}
    answer = (
        run_ranks(asked, ranks=ranks, **{**common, **how})
        if ranks > 1
        else launch.run_child(asked, **{**common, **how})
    )
    return str(answer["variants"][0]["files"])


def ranks_at_work() -> list[int]:
    return [process.popen.pid for process in list(launch._table.values())]


def end_with_each(signals: list[int], store: Store, prefix: str) -> threading.Thread:
    """One of the ranks at work gets each of the signals, the next one after the training has gone on."""

    def epochs() -> str:
        found = [key for key in store.list_objects(prefix) if key.endswith("teacher")]  # not a part, which comes before
        return str(store.get(found[0]) or b"")[:80] if found else ""

    def strike() -> None:
        chance, seen = random.Random(0), ""
        for number in signals:
            while not (epochs() != seen and len(ranks_at_work()) == 2):
                time.sleep(0.01)
            seen = epochs()
            os.kill(chance.choice(ranks_at_work()), number)
            while len(ranks_at_work()) == 2 and number == signal.SIGKILL:
                time.sleep(0.01)

    thread = threading.Thread(target=strike, daemon=True)
    thread.start()
    return thread


def test_the_stage_makes_the_same_on_any_number_of_processes(
    task: tuple[Job, DataRef], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path))
    job, data = task
    outcome = run_stage(TRAIN, job, QUICK, data=data)
    assert {path.name for path in (tmp_path / "runs" / "r1").iterdir()} == {"train.log", "train-rank2.log"}
    assert launch._table == {}
    told: list[float] = []
    made = train(task, tmp_path / "one", ranks=1, key="one", on_progress=lambda done, _: told.append(done))
    assert made == str([file.model_dump() for file in outcome.variant.files])
    assert told == sorted(told) and told[-1] == 1.0
    alone = job.model_copy(update={"parallel": Parallel(shards=4, processes=1)})
    assert run_stage(TRAIN, alone, QUICK, data=data).status == "reused", "whoever shared it"
    other = StageCall(TRAIN, job.model_copy(update={"parallel": None}), QUICK, data).key
    assert len({other, *(StageCall(TRAIN, j, QUICK, data).key for j in (job, alone))}) == 2


def test_ranks_that_are_killed_or_hang_start_again_from_the_last_checkpoint(
    task: tuple[Job, DataRef], store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="winnow.ranks")
    straight = train(task, tmp_path / "one", ranks=1, key="one", spec=LONG)
    killer = end_with_each([signal.SIGKILL, signal.SIGSTOP], store, "checkpoints/killed/")
    assert train(task, tmp_path / "killed", ranks=2, key="killed", spec=LONG, patience=4.0) == straight
    assert not killer.is_alive()
    assert "SIGKILL; peak memory" in caplog.text and "this rank lost rank" in caplog.text
    assert caplog.text.count("start again, from the last checkpoint") == 2
    assert "going on from the checkpoint after epoch" in (tmp_path / "killed" / "train-rank2.log").read_text()
    assert launch._table == {}


def test_a_model_in_blocks_is_the_same_on_processes_that_have_some_of_them_each(store: Store, tmp_path: Path) -> None:
    workload = taught("MovedSquares")
    piped = Parallel(shards=4, processes=2, engine="pipeline")
    job, data = job_for(store, workload.ref).model_copy(update={"parallel": piped}), put_data(store, workload)
    straight = train((job, data), tmp_path / "one", ranks=1, key="one", spec=LONG)
    killer = end_with_each([signal.SIGKILL], store, "checkpoints/killed/")
    assert train((job, data), tmp_path / "killed", ranks=2, key="killed", spec=LONG, patience=20.0) == straight
    assert not killer.is_alive() and launch._table == {}
    log = (tmp_path / "killed" / "train.log").read_text()
    assert "going on from the checkpoint after epoch" in log and "shared out" not in log
    keys = {
        StageCall(TRAIN, job.model_copy(update={"parallel": parallel}), QUICK, data).key
        for parallel in (piped, Parallel(shards=4, processes=1), SHARED)
    }
    assert len(keys) == 1, "a result is found again whoever made it"


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_what_torch_shares_out_goes_on_too(
    engine: Literal["ddp", "fsdp"], task: tuple[Job, DataRef], store: Store, tmp_path: Path
) -> None:
    """A model large enough to be split; the same bits as nobody disturbed it, on the same number of processes."""
    given = Parallel(exact=False, processes=2, engine=engine)
    shared = (task[0].model_copy(update={"parallel": given}), task[1])
    spec = LONG.model_copy(update={"epochs": 12, "scale": {"width": WIDE}})
    straight = train(shared, tmp_path / "two", ranks=2, key="two", spec=spec)
    killer = end_with_each([signal.SIGKILL], store, "checkpoints/killed/")
    assert train(shared, tmp_path / "killed", ranks=2, key="killed", spec=spec) == straight
    assert not killer.is_alive()
    assert "going on from the checkpoint after epoch" in (tmp_path / "killed" / "train-rank2.log").read_text()
    assert launch._table == {}


def test_the_number_of_processes_is_part_of_what_torch_shares_out(
    task: tuple[Job, DataRef], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path))
    two, small = (
        task[0].model_copy(update={"parallel": Parallel(exact=False, processes=2, engine=engine)})
        for engine in (None, "fsdp")
    )
    assert run_stage(TRAIN, two, QUICK, data=task[1]).status == "computed"
    assert run_stage(TRAIN, two, QUICK, data=task[1]).status == "reused"
    three = two.model_copy(update={"parallel": Parallel(exact=False, processes=3)})
    assert StageCall(TRAIN, three, QUICK, task[1]).key != StageCall(TRAIN, two, QUICK, task[1]).key
    with pytest.raises(SpecError, match="splitting them saves no memory; use engine: ddp"):
        run_stage(TRAIN, small, QUICK, data=task[1])
    assert launch._table == {}


def test_a_machine_s_address_belongs_to_one_of_its_interfaces() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") == "", "of the documentation's own network, RFC 5737"


def test_one_that_dies_again_and_again_is_given_up(
    task: tuple[Job, DataRef], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranked, "_TRIES", {"find each other": 1, "train": 1})
    stop = threading.Event()

    def strike() -> None:
        while not stop.is_set():
            for pid in ranks_at_work()[1:]:
                if psutil.pid_exists(pid):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    killer = threading.Thread(target=strike)
    killer.start()
    try:
        with pytest.raises(ChildFailed, match=r"the process of stage train died \(SIGKILL"):
            train(task, tmp_path / "x", ranks=2, key="x")
    finally:
        stop.set()
        killer.join()
    assert launch._table == {}


def test_errors_and_limits_are_those_of_a_stage(task: tuple[Job, DataRef], tmp_path: Path) -> None:
    cases: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (
            StageOutOfMemory,
            "past its limit of 60.0 MB",
            lambda: train(task, tmp_path / "a", ranks=2, key="a", limits=Limits(memory_bytes=60_000_000)),
        ),
        (
            SpecError,
            "the smallest batch has 4 rows",
            lambda: train(task, tmp_path / "b", ranks=2, key="b", spec=TrainSpec(batch_size=4)),
        ),
    ]
    for kind, says, call in cases:
        with pytest.raises(kind, match=says):
            call()
        assert launch._table == {}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"shards": 6}, "shards 6 is no power of two; use 4 or 8"),
        ({"shards": 4, "processes": 3}, "processes 3 is no power of two; use 2 or 4"),
        ({"shards": 2, "processes": 4}, "4 processes cannot share 2 shards; use at most 2"),
        ({"processes": 0}, "processes 0 is no power of two; use 1 or 2"),
    ],
)
def test_numbers_that_do_not_divide_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Parallel(**fields)


def test_processes_follow_the_cores_that_are_free() -> None:
    auto = Parallel(shards=4)
    assert [auto.ranks(cores) for cores in (1, 2, 3, 4, 7, 16)] == [1, 2, 2, 4, 4, 4]
    assert Parallel(shards=8, processes=8).ranks(2) == 8
    job = Job(run_id="r", model="m", store="s3://x", workload=WorkloadRef(path="a:B"), parallel=auto)
    assert StageCall(TRAIN, job, QUICK).shared == auto
    assert StageCall(export.STAGE, job, ExportSpec()).shared is None
    assert StageCall(prune.STAGE, job, PruneSpec(epochs=0)).shared is None, "nothing is trained"
