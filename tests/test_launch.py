"""Child processes: results, errors, limits, and that none is ever left behind."""

from __future__ import annotations

import contextlib
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
from forked_stages import WHERE

from model_registry.store import Store
from tasks.running import launch
from tasks.running.errors import ChildFailed, DataCheckFailed, Interrupted, StageOutOfMemory, StageTimedOut
from tasks.running.stage import Job, Limits, WorkloadRef
from tasks.running.stage_log import StageLog

HERE = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def interpreters_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started as users have them."""
    monkeypatch.delenv(WHERE, raising=False)


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


def test_a_killed_run_s_own_temporary_files_go_too(tmp_path: Path) -> None:
    code = (
        "import time; from tasks.running.process_guard import run_folder\n"
        "with run_folder() as folder:\n"
        "    (folder / 'model.onnx').write_bytes(b'x'); print(folder, flush=True); time.sleep(600)"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert run.stdout is not None
    folder = Path(run.stdout.readline().strip())
    assert folder.is_relative_to(tmp_path) and list(folder.iterdir())
    run.kill()
    run.communicate()
    end = time.monotonic() + 20
    while list(tmp_path.iterdir()):
        assert time.monotonic() < end, list(tmp_path.rglob("*"))
        time.sleep(0.05)


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


@pytest.mark.parametrize("entry", ["hang", "hold_the_lock", "escape_and_hang"])
def test_children_die_with_a_killed_parent_and_its_files_go(tmp_path: Path, entry: str) -> None:
    """Also one that holds the interpreter's lock, so that nobody in it reads the lifeline."""
    pids = tmp_path / "pids"
    driver = textwrap.dedent(f"""
        import sys; sys.path.append({HERE!r})
        from pathlib import Path
        from test_launch import run
        run({entry!r}, Path({str(tmp_path)!r}), pids={str(pids)!r})
    """)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    parent = subprocess.Popen([sys.executable, "-c", driver], env={**os.environ, "TMPDIR": str(temporary)})
    end = time.monotonic() + 30
    while not (pids.exists() and pids.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    children = [int(p) for p in pids.read_text().split()]
    assert [p.name[:7] for p in temporary.iterdir()] == ["winnow-"]
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert wait_gone(children) == []
    end = time.monotonic() + 5
    while list(temporary.iterdir()) and time.monotonic() < end:
        time.sleep(0.05)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("die", [False, True])
def test_what_a_stage_leaves_in_a_session_of_its_own_is_ended(tmp_path: Path, die: bool) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(ChildFailed, match="SIGABRT") if die else contextlib.nullcontext():
        run("escape", tmp_path, pids=str(pids), die=die)
    assert wait_gone([int(p) for p in pids.read_text().split()]) == []


def test_a_stage_that_asks_somebody_is_told_that_nobody_is_there(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="EOFError"):
        run("ask", tmp_path, limits=Limits(seconds=20))


def test_a_bar_without_newlines_is_read_at_once_and_its_end_is_shown(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match=r"SIGABRT") as caught:
        run("draw_a_bar", tmp_path, limits=Limits(seconds=60))
    assert str(caught.value).endswith("### 399 of 400")
    assert len(str(caught.value)) < 6000
    assert (tmp_path / "log").stat().st_size > 400 * 65_536


def test_a_log_ends_at_its_limit_and_says_so(tmp_path: Path) -> None:
    with StageLog(tmp_path / "log", most=100) as log:
        for number in range(50):
            log.write(b"line %d\n" % number)
        assert log.last_lines().endswith("line 49")
    kept = (tmp_path / "log").read_bytes()
    assert len(kept) < 200 and b"line 0\n" in kept and kept.endswith(b"ends at 100 bytes]\n")
    with StageLog(tmp_path / "log", most=100) as log:  # the stage runs again
        log.write(b"more")
    assert (tmp_path / "log").read_bytes() == kept


@pytest.mark.parametrize(
    ("entry", "kind", "says"),
    [
        ("refuse_oddly", DataCheckFailed, r"row \\ud800"),
        ("speechless", ChildFailed, "Speechless: its text cannot be made"),
    ],
)
def test_an_error_that_is_not_json_arrives_all_the_same(
    tmp_path: Path, entry: str, kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says) as caught:
        run(entry, tmp_path)
    if isinstance(caught.value, DataCheckFailed):
        assert caught.value.details["worst"] == "NaN"
        assert caught.value.details["row"].startswith("<object object")


def test_a_stage_may_close_its_log_or_fork(tmp_path: Path) -> None:
    assert run("close_stdout", tmp_path)["values"] == {"closed": True}
    assert run("fork", tmp_path)["values"]["pid"]


def test_a_stage_finds_its_process_as_if_it_was_fresh(tmp_path: Path) -> None:
    def ask(entry: str) -> dict[str, Any]:
        answer = launch.run_child(
            request("s3://x", entry, {}, tmp_path), name="x", limits=Limits(), log_path=tmp_path / "log", pool="one"
        )
        values: dict[str, Any] = answer["values"]
        return values

    with launch.kept_processes():
        first = ask("find_traces")
        left = ask("leave_traces")
        again = ask("find_traces")
    assert first["pid"] == left["pid"] == again["pid"]
    assert (
        again["found"]
        == first["found"]
        == dict.fromkeys(("folder", "environment", "path", "dtype"), False) | {"count": 0}
    )
    assert again["drawn"] == first["drawn"]
