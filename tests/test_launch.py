"""Child processes: results, errors, limits, and that none is ever left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from model_registry.store import Store
from tasks.running import launch
from tasks.running.errors import ChildFailed, DataCheckFailed, Interrupted, StageOutOfMemory, StageTimedOut
from tasks.running.stage import Job, Limits, WorkloadRef

HERE = str(Path(__file__).parent)


def request(store_uri: str, entry: str, spec: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    job = Job(
        run_id="r1", model="m", store=store_uri, workload=WorkloadRef(path="child_entries:Nothing", folder=HERE), seed=3
    )
    return {
        "entry": f"child_entries:{entry}",
        "job": job.model_dump(mode="json"),
        "spec": spec,
        "data": None,
        "inputs": {},
        "extra": {},
        "key": "k",
        "workdir": str(tmp_path),
    }


def run(
    entry: str, tmp_path: Path, *, uri: str = "s3://x", limits: Limits | None = None, **spec: Any
) -> dict[str, Any]:
    return launch.run_child(
        request(uri, entry, spec, tmp_path), name=entry, limits=limits or Limits(), log_path=tmp_path / "log"
    )


def wait_gone(pids: list[int], seconds: float = 5.0) -> list[int]:
    """Those of the processes still alive after at most this number of seconds."""
    end = time.monotonic() + seconds
    alive = pids
    while alive and time.monotonic() < end:
        alive = [p for p in alive if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]
        time.sleep(0.05)
    return alive


def test_a_result_comes_back_and_the_log_is_kept(store: Store, tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    answer = launch.run_child(
        request(store.uri, "echo", {"a": 1}, tmp_path),
        name="echo",
        limits=Limits(),
        log_path=tmp_path / "log",
        on_progress=lambda fraction, text: told.append((fraction, text)),
    )
    assert answer["values"]["spec"] == {"a": 1}
    assert answer["values"]["seed"] == 3
    assert told == [(0.5, "half")]
    assert "echo at work" in (tmp_path / "log").read_text()
    heavy = {"prefect", "torch", "mlflow", "great_expectations", "pandas"} & set(answer["values"]["modules"])
    assert not heavy


def test_what_a_child_compiles_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the environment says otherwise, as on many CI machines: each child would compile torch again."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    answer = run("flags", tmp_path)
    assert answer["values"] == {"dont_write_bytecode": False}


def test_a_standby_has_imported_what_its_pool_needs(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(launch.POOLS, "trial", ("fractions",))
    launch.prewarm("trial")
    (standby,) = launch._standby
    answer = launch.run_child(
        request(store.uri, "echo", {}, tmp_path), name="echo", limits=Limits(), log_path=tmp_path / "log", pool="trial"
    )
    assert "fractions" in answer["values"]["modules"]
    assert standby.popen.poll() is not None  # used once: nobody asked to keep it
    assert launch._standby == []


def test_stages_of_a_pool_share_a_process_until_one_fails(store: Store, tmp_path: Path) -> None:
    def pid(pool: str, code: str = "v1") -> int:
        asked = request(store.uri, "whoami", {}, tmp_path)
        log = tmp_path / "log"
        answer = launch.run_child(asked, name="x", limits=Limits(), log_path=log, pool=pool, code=code)
        return int(answer["values"]["pid"])

    with launch.kept_processes():
        first = pid("one")
        assert pid("one") == first
        assert pid("two") != first
        assert pid("two", code="v2") not in {first, pid("two")}  # the user has edited the workload meanwhile
        with pytest.raises(DataCheckFailed):
            launch.run_child(
                request(store.uri, "refuse", {}, tmp_path),
                name="x",
                limits=Limits(),
                log_path=tmp_path / "log",
                pool="one",
                code="v1",
            )
        assert pid("one") != first
        left = [process.popen.pid for process in launch._standby]
        assert len(left) == 3
    assert wait_gone(left) == []


def test_named_errors_cross_the_process_boundary(tmp_path: Path) -> None:
    with pytest.raises(DataCheckFailed, match="rows 3 and 5 are null") as caught:
        run("refuse", tmp_path)
    assert caught.value.details == {"rows": [3, 5]}


@pytest.mark.parametrize(
    ("entry", "says"),
    [("explode", "ZeroDivisionError: a surprise"), ("not_a_number", "ValueError: Out of range float")],
)
def test_any_other_error_tells_its_type_and_log(entry: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match=says) as caught:
        run(entry, tmp_path)
    assert str(tmp_path / "log") in str(caught.value)
    assert "Traceback" in str(caught.value)


def test_a_dead_child_tells_how_it_died(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match=r"(?s)SIGABRT.*last words"):
        run("die", tmp_path)


def test_a_hanging_child_and_its_own_children_are_ended(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(StageTimedOut, match=r"(?s)limit of 3 s.*about to hang") as caught:
        run("hang", tmp_path, limits=Limits(seconds=3), pids=str(pids))
    assert isinstance(caught.value, TimeoutError)  # Prefect's state becomes TimedOut
    assert wait_gone([int(p) for p in pids.read_text().split()]) == []


@pytest.mark.parametrize("entry", ["grow", "grow_below"])
def test_a_growing_child_is_ended_with_all_below_it(tmp_path: Path, entry: str) -> None:
    with pytest.raises(StageOutOfMemory, match=r"limit of 315 MB"):
        run(entry, tmp_path, limits=Limits(seconds=60, memory_bytes=300 << 20))


def test_a_log_is_continued(store: Store, tmp_path: Path) -> None:
    for _ in range(2):
        run("echo", tmp_path, uri=store.uri)
    assert (tmp_path / "log").read_text().count("echo at work") == 2


def test_a_run_that_was_asked_to_stop_starts_nothing_more(tmp_path: Path) -> None:
    with launch.kept_processes():
        launch.end_all()
        launch.prewarm("numbers")
        with pytest.raises(Interrupted, match="no new process is started"):
            run("whoami", tmp_path)
        assert launch._table == {} and launch._standby == []
    with launch.kept_processes():  # the next run in this process may
        assert run("whoami", tmp_path)["values"]["pid"]


def test_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    driver = textwrap.dedent(f"""
        import sys; sys.path.append({HERE!r})
        from pathlib import Path
        from test_launch import run
        run("hang", Path({str(tmp_path)!r}), pids={str(pids)!r})
    """)
    parent = subprocess.Popen([sys.executable, "-c", driver])
    end = time.monotonic() + 30
    while not (pids.exists() and pids.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    children = [int(p) for p in pids.read_text().split()]
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert wait_gone(children) == []
