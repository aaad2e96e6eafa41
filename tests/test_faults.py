"""Bad luck in mid-run: killed runs, killed servers, broken objects, two runs at once, Ctrl-C. Nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from conftest import RunningStack
from forked_runs import ForkedRun, Forks
from patience import PATIENCE, wait_for
from winnow_command import Winnow, stage_lines

from infra.component import fetch_when_free
from model_registry.ledger import Ledger
from model_registry.store import Store

Process = subprocess.Popen[str] | ForkedRun


class World:
    """The stack, and what a test needs to look at it from outside."""

    def __init__(self, stack: RunningStack, forks: Forks, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stack, self.winnow = stack, Winnow(folder, stack.home, forks)
        for name, value in stack.environment.items():
            monkeypatch.setenv(name, value)
        self.store = Store.from_environment()

    def run_folders(self) -> set[Path]:
        folder = self.stack.home / "runs"
        return set(folder.iterdir()) if folder.exists() else set()

    def start(self, *arguments: str) -> tuple[Process, Callable[[], Path | None]]:
        """Start a run; the second value finds its folder once it has one."""
        before = self.run_folders()
        process = self.winnow.start_run("tiny", *arguments)
        return process, lambda: next(iter(self.run_folders() - before), None)

    def prefect_state(self, report: dict[str, Any]) -> str:
        url = f"{self.stack.environment['PREFECT_API_URL']}/flow_runs/{report['prefect_run']}"
        status, body = fetch_when_free(url, timeout=10, headers=self.stack.prefect_headers)
        assert status == 200, body
        return str(json.loads(body)["state"]["type"])

    def task_seen(self, prefect_run: str, name: str) -> bool:
        body = {"flow_runs": {"id": {"any_": [prefect_run]}}, "task_runs": {"name": {"like_": name}}}
        url = f"{self.stack.environment['PREFECT_API_URL']}/task_runs/filter"
        answer = httpx.post(url, json=body, headers=self.stack.prefect_headers)
        return answer.status_code == 200 and bool(answer.json())  # it says 503 while its database is locked

    def leftovers(self) -> list[psutil.Process]:
        """Child processes of runs that still live."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            if "tasks.running.child" in (process.info["cmdline"] or []):
                try:
                    if process.environ().get("WINNOW_HOME") == str(self.stack.home):
                        found.append(process)
                except psutil.NoSuchProcess:
                    continue
        return found

    def kill(self, *components: str, number: int = signal.SIGKILL) -> None:
        status = json.loads(self.winnow("status", "--json").stdout)
        for component in status["components"]:
            if component["name"] in components:
                os.killpg(os.getpgid(component["pid"]), number)

    def up(self) -> None:
        done = self.winnow("up")
        assert done.returncode == 0, done.stderr


@pytest.fixture
def world(stack: RunningStack, forks: Forks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(stack, forks, tmp_path, monkeypatch)


def _report(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def _reached(world: World, folder: Callable[[], Path | None], stage: str) -> bool:
    """Whether the run is in the stage: its process has a log, or Prefect has seen its task."""
    here = folder()
    if here is None or not (here / "report.json").exists():
        return False
    if stage in {"track", "register", "deploy"}:
        return world.task_seen(_report(here)["prefect_run"], stage)
    # On a slow machine trainings this long are rehearsed first, and a rehearsal has processes of these names too.
    return any("untrained" not in log.name for log in here.glob(f"{stage}*.log"))


STAGES = (
    "data",
    "train",
    "distill",
    "prune",
    "export",
    "quantize",
    "measure",
    "validate",
    "track",
    "register",
    "deploy",
)


def _wait_to_kill(world: World, process: Process, folder: Callable[[], Path | None], stage: str) -> None:
    wait_for(
        lambda: _reached(world, folder, stage) or process.poll() is not None,
        what=f"stage {stage}",
        every=0.03,
    )


def test_a_run_killed_in_each_stage_goes_on_where_it_was(world: World) -> None:
    # Rows divided as no other test divides them: or the data stage would be reused, and there would be nothing to kill.
    arguments = ("--set", "model=killed", "--set", "seed=11", "--set", "workload.arguments.seed=11")
    killed: list[Path] = []
    for stage in STAGES:
        process, folder = world.start(*arguments)
        _wait_to_kill(world, process, folder, stage)
        process.kill()
        process.communicate()
        here = folder()
        assert here is not None
        alive = _report(here)["status"] == "running"  # what a run that was killed in the middle still says
        # The last three take a moment only, and Prefect tells of them late: such a run may have ended by itself.
        assert alive or stage in {"track", "register", "deploy"}, stage
        if alive:
            killed.append(here)
        wait_for(lambda: not world.leftovers(), seconds=10, what="the end of all child processes")

    final = world.winnow.report("tiny", *arguments)
    assert (final["status"], final["version"]) == ("released", 1)
    # Each stage was computed to its end once; the one that was killed began at most twice.
    for stage in ("data", "train", "distill", "prune"):
        begun = [f for f in world.run_folders() if (f / f"{stage}.log").exists() and f in killed]
        assert len(begun) <= 2, (stage, begun)
        assert stage_lines(final)[stage] == "reused"
    runs = json.loads(world.winnow("runs", "--json").stdout)
    states = {r["run_id"]: r["status"] for r in runs["runs"]}
    for folder_ in killed:  # the last one may have died after its commit
        ended = {"crashed": "CRASHED", "released": "COMPLETED"}[states[folder_.name]]
        assert world.prefect_state(_report(folder_)) == ended, folder_
    assert [states[f.name] for f in killed[:8]] == ["crashed"] * 8
    assert len(Ledger(world.store).history("killed")) >= 1
    assert Ledger(world.store).pending("killed") is None


@pytest.mark.parametrize("components", [("s3",), ("mlflow", "prefect")], ids="+".join)
def test_servers_that_are_away_for_20_seconds_are_waited_for(world: World, components: tuple[str, ...]) -> None:
    process, folder = world.start("--set", "model=outage", "--set", f"distill.epochs={10 + len(components)}")
    wait_for(lambda: _reached(world, folder, "distill"), what="distill")
    world.kill(*components)
    time.sleep(20)
    world.up()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err[-3000:]
    report = json.loads(out)
    assert report["status"] == "released"
    if "prefect" not in components:
        assert world.prefect_state(report) == "COMPLETED"


def test_a_run_whose_mlflow_hangs_releases_all_the_same(world: World) -> None:
    process, folder = world.start("--set", "model=unseen", "--set", "seed=91")  # nobody else's: it trains
    wait_for(lambda: _reached(world, folder, "distill"), what="distill")
    world.kill("mlflow", number=signal.SIGSTOP)
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        world.kill("mlflow", number=signal.SIGCONT)
    assert process.returncode == 0, err[-3000:]
    report = json.loads(out)
    assert report["status"] == "released" and "MLflow does not show this run" in " ".join(report["warnings"])
    up = world.winnow("up")
    assert "unseen: MLflow's alias champion was moved to the champion" in up.stdout


def test_a_corrupted_object_is_quarantined_and_made_again(world: World) -> None:
    arguments = ("--set", "model=corrupt", "--set", "seed=31")
    first = world.winnow.report("tiny", *arguments, "--no-deploy")
    chosen = world.store.load_variant(first["chosen"]).file("model.onnx")
    key = world.store.blob_key(chosen.sha256)
    # Same size and same metadata: only opening it can tell.
    world.store.client.put_object(
        Bucket=world.store.bucket, Key=key, Body=b"\0" * chosen.size, Metadata={"sha256": chosen.sha256}
    )
    again = world.winnow.report("tiny", *arguments)
    assert again["status"] == "released"
    assert again["chosen"] == first["chosen"]
    assert any("computed again" in note and chosen.sha256 in note for note in again["notes"])
    assert world.store.fetch_bytes(chosen)  # whole again
    assert any(chosen.sha256 in name for name in world.store.list_objects("quarantine/"))


def test_two_runs_of_one_model_at_once(world: World) -> None:
    same = [world.winnow.start_run("tiny", "--set", "model=twins", "--set", "seed=41") for _ in range(2)]
    results = [process.communicate(timeout=PATIENCE) for process in same]
    reports = []
    for process, (out, err) in zip(same, results, strict=True):
        assert process.returncode == 0, err[-3000:]
        reports.append(json.loads(out))
    assert reports[0]["chosen"] == reports[1]["chosen"]
    assert {r["version"] for r in reports} == {1}
    for name in ("train", "distill", "prune"):
        assert sorted(stage_lines(r)[name] for r in reports) == ["computed", "reused"]
    history = Ledger(world.store).history("twins")
    assert [e.to_version for e in history if e.state == "committed"][-1] == 1


def test_a_stopped_run_leaves_nothing_behind(world: World) -> None:
    arguments = ("--set", "model=stopped", "--set", "seed=51")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process, folder = world.start(*arguments, "--set", "distill.epochs=200")
        wait_for(lambda: _reached(world, folder, "distill"), what="distill")  # noqa: B023 - called here
        time.sleep(1)
        pressed = time.monotonic()
        os.killpg(process.pid, number)  # as a terminal does, to the whole foreground group
        _, err = process.communicate(timeout=PATIENCE)
        assert time.monotonic() - pressed < 10
        assert process.returncode == 130, err[-2000:]
        assert "Continue with" in err
        assert world.leftovers() == []
        here = folder()
        assert here is not None
        report = _report(here)
        assert report["status"] == "interrupted"
        assert world.prefect_state(report) == "CANCELLED"
        for key in world.store.list_objects("leases/stages/"):
            lease = json.loads(world.store.get(key) or b"{}")
            assert lease["holder"] is None or lease["holder"]["pid"] != process.pid
    resumed = world.winnow.report("tiny", *arguments, "--set", "distill.epochs=3", "--no-deploy")
    assert stage_lines(resumed)["train"] == "reused", resumed["stages"]


def test_a_stage_past_its_limits_is_named_with_them(world: World) -> None:
    report = world.winnow.report(
        "tiny",
        "--set",
        "model=limits",
        "--set",
        "seed=61",
        *("--set", "train.epochs=2000", "--set", "limits.train.seconds=0.5"),
        code=1,
    )
    assert report["error"]["type"] == "StageTimedOut"
    assert report["error"]["stage"] == "train"
    assert "limit of 0.5 s" in report["error"]["message"]
    body = {"flow_runs": {"id": {"any_": [report["prefect_run"]]}}, "task_runs": {"name": {"like_": "train"}}}
    url = f"{world.stack.environment['PREFECT_API_URL']}/task_runs/filter"
    (task,) = httpx.post(url, json=body, headers=world.stack.prefect_headers).json()
    assert task["state"]["name"] == "TimedOut"
    report = world.winnow.report(
        "tiny", "--set", "model=limits", "--set", "seed=61", "--set", "limits.train.memory_bytes=100000000", code=1
    )
    assert report["error"]["type"] == "StageOutOfMemory"
    assert "100 MB" in report["error"]["message"]


@pytest.mark.parametrize(
    ("workload", "flaw", "code", "says"),
    [
        ("flawed_workloads:Flawed", "nan", 1, "DataCheckFailed"),
        ("flawed_workloads:_Sum", "", 2, "method splits() is missing"),
        ("nowhere_at_all:Mine", "", 2, "nowhere_at_all"),
    ],
)
def test_bad_input_ends_before_training(world: World, workload: str, flaw: str, code: int, says: str) -> None:
    done = world.winnow(
        "run",
        "tiny",
        "--json",
        *("--set", "model=bad", "--set", f"workload.path={workload}"),
        *("--set", "workload.arguments=" + (f"{{flaw: {flaw}}}" if flaw else "{}")),
        *("--set", f"workload.folder={Path(__file__).parent}"),
    )
    assert done.returncode == code, done.stderr
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert Ledger(world.store).history("bad") == []


def test_wrong_keys_and_an_unwritable_home_are_named(world: World, tmp_path: Path) -> None:
    servers = {k: v for k, v in world.stack.environment.items() if k != "WINNOW_HOME"}
    wrong = Winnow(tmp_path, tmp_path / "none", **{**servers, "AWS_SECRET_ACCESS_KEY": "wrong"})
    done = wrong("run", "tiny", "--set", "model=keys")
    assert done.returncode == 1
    assert "StoreDenied" in done.stderr
    assert "AWS_SECRET_ACCESS_KEY" in done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "file").write_text("")
    unwritable = Winnow(tmp_path, tmp_path / "file" / "home", **servers)
    done = unwritable("run", "tiny", "--set", "model=disk")
    assert done.returncode == 1
    assert str(tmp_path / "file") in done.stderr
    assert "Traceback" not in done.stderr
