"""winnow up, down, status, logs and what they print."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import RunningStack
from measurements import run_report
from patience import PATIENCE
from winnow_command import Winnow

from flows.commands.command_stack import doctor_command, down_command, logs_command, status_command, up_command
from flows.commands.stack_status import ModelState
from infra import ports
from infra.component import fetch, fetch_when_free
from infra.daemon import Daemon, census
from infra.stack import NAMES, Stack
from model_registry.ledger import Ledger
from model_registry.owner import Owner
from model_registry.store import Store
from tasks.report.run_report import Status, save_run

DIGEST = "0" * 64


@pytest.fixture
def winnow(stack: RunningStack, tmp_path: Path) -> Winnow:
    """The command, as a user of the session's stack."""
    return Winnow(tmp_path, stack.home)


def in_stack(stack: RunningStack, patch: pytest.MonkeyPatch) -> Store:
    for name, value in stack.environment.items():
        patch.setenv(name, value)
    return Store.from_environment()


# -- status -----------------------------------------------------------------------------------------------------------
def test_status_tells_components_disk_and_store(winnow: Winnow) -> None:
    done = winnow("status", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["schema"] == 1 and found["up"] is True and found["problems"] == []
    assert {one["name"]: one["state"] for one in found["components"]} == dict.fromkeys(NAMES, "up")
    assert {"seaweedfs", "mlflow", "prefect"} <= set(found["disk"]) and found["disk_free"] > 0
    assert set(found["store_usage"]) == {"winnow", "winnow-records"}
    text = winnow("status").stdout
    assert "S3 server (SeaweedFS)" in text and "free" in text and "s3://winnow" in text


def test_status_loads_nothing_that_takes_a_second(winnow: Winnow) -> None:
    told = Winnow(winnow.folder, winnow.home, PYTHONPROFILEIMPORTTIME="1")("status")
    assert told.returncode == 0
    loaded = {line.rpartition("|")[2].split(".")[0].strip() for line in told.stderr.splitlines()}
    heavy = {"prefect", "torch", "mlflow", "onnx", "onnxruntime", "pandas", "sklearn", "scipy", "matplotlib", "fastapi"}
    assert "click" in loaded and not loaded & heavy


def test_status_imports_neither_prefect_nor_mlflow() -> None:
    code = (
        "import sys, infra.stack\n"
        "import flows.commands.command_stack, flows.commands.stack_status, flows.commands.stack_doctor\n"
        "heavy = ('prefect', 'mlflow', 'torch', 'numpy', 'pandas', 'boto3', 'rich')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_status_shows_champion_hand_moved_alias_and_pending_release(
    winnow: Winnow, stack: RunningStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = in_stack(stack, monkeypatch)
    ledger = Ledger(store)
    api = f"{stack.environment['MLFLOW_TRACKING_URI']}/api/2.0/mlflow"
    mlflow(stack, f"{api}/registered-models/create", {"name": "shown"})
    for _ in range(2):
        mlflow(stack, f"{api}/model-versions/create", {"name": "shown", "source": "s3://nowhere/model"})
    ledger.commit(ledger.begin("shown", 1, DIGEST, expected_champion_seq=0))

    def shown() -> dict[str, Any]:
        [model] = [one for one in json.loads(winnow("status", "--json").stdout)["models"] if one["model"] == "shown"]
        return dict(model)

    assert (shown()["champion"], shown()["alias"], shown()["hand_moved"]) == (1, None, True)
    alias = {"name": "shown", "alias": "champion"}
    mlflow(stack, f"{api}/registered-models/alias", alias | {"version": "1"})
    assert (shown()["alias"], shown()["hand_moved"]) == (1, False)
    mlflow(stack, f"{api}/registered-models/alias", alias | {"version": "2"})
    assert (shown()["alias"], shown()["hand_moved"]) == (2, True)
    assert "alias champion points to version 2; the ledger says version 1" in winnow("status").stdout
    entry = ledger.begin("shown", 2, DIGEST, expected_champion_seq=1)
    found = shown()
    assert found["hand_moved"] is False and found["pending"].startswith("release to version 2 (process ")
    ledger.abort(entry, "test")
    for key in store.list_records("ledger/shown/"):  # the endpoint of the session's stack has no such model
        store.delete_record(key)


def mlflow(stack: RunningStack, url: str, body: dict[str, str]) -> None:
    headers = {"Content-Type": "application/json", **stack.mlflow_headers}
    code, answer = fetch_when_free(url, method="POST", body=json.dumps(body).encode(), headers=headers, timeout=30)
    assert code == 200, answer


def test_status_names_runs_whose_process_is_gone(
    winnow: Winnow, stack: RunningStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = in_stack(stack, monkeypatch)
    code = "from model_registry.owner import Owner; print(Owner.current().model_dump_json())"
    dead = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    live = {**dead, "pid": os.getpid()}
    ended: tuple[tuple[str, Status], ...] = (("zz-dead", "running"), ("zz-done", "released"))
    for run_id, run_status in ended:
        told = {"owner": Owner.model_validate(dead), "version": None}
        save_run(store, run_report(run_status, run_id=run_id).model_copy(update=told))
    assert live["pid"] != dead["pid"]
    assert json.loads(winnow("status", "--json").stdout)["dead_runs"] == ["zz-dead"]
    assert "zz-dead" in winnow("status").stdout
    assert "zz-dead: its process died; the run is marked as crashed" in winnow("up").stdout
    assert json.loads(winnow("status", "--json").stdout)["dead_runs"] == []
    for run_id in ("zz-dead", "zz-done"):
        store.delete_record(f"runs/{run_id}.json")


def test_status_of_no_stack_fails_and_says_what_to_do(tmp_path: Path) -> None:
    winnow = Winnow(tmp_path, tmp_path / ".winnow")
    done = winnow("status")
    assert done.returncode == 1 and "winnow up" in done.stdout
    done = winnow("status", "--json")
    assert done.returncode == 1 and json.loads(done.stdout)["up"] is False
    assert not (tmp_path / ".winnow").exists()


@pytest.mark.parametrize(
    ("champion", "alias", "pending", "moved"),
    [
        (1, 1, None, False),
        (2, 1, None, True),
        (1, None, None, True),
        (None, None, None, False),
        (1, 2, "release", False),
    ],
)
def test_an_alias_is_hand_moved_when_it_differs_and_nothing_is_under_way(
    champion: int | None, alias: int | None, pending: str | None, moved: bool
) -> None:
    assert ModelState("m", champion, None, None, alias, pending).hand_moved is moved


# -- logs -------------------------------------------------------------------------------------------------------------
def test_logs_are_shown_and_followed(winnow: Winnow, stack: RunningStack) -> None:
    done = winnow("logs", "endpoint", "-n", "1000")
    assert done.returncode == 0 and "-m serving" in done.stdout
    assert {line.split()[0] for line in winnow("logs", "-n", "2").stdout.splitlines()} >= {"s3", "mlflow", "prefect"}
    assert winnow("logs", "nonsense").returncode == 2
    following = winnow.start("logs", "endpoint", "-n", "0", "-f")
    assert following.stdout is not None
    time.sleep(1.5)
    with Daemon("endpoint", stack.home).log_file.open("a") as log:
        log.write("a line of the test\n")
    assert following.stdout.readline() == "a line of the test\n"
    following.send_signal(signal.SIGINT)
    _, errors = following.communicate(timeout=PATIENCE)
    assert following.returncode == 130 and "Traceback" not in errors


# -- up and down ------------------------------------------------------------------------------------------------------
def test_a_second_up_finds_all_running_and_deploys_the_flow(winnow: Winnow, stack: RunningStack) -> None:
    before = {state.name: state.pid for state in Stack(stack.home).components()}
    done = winnow("up")
    assert done.returncode == 0, done.stderr
    assert "The stack is up" in done.stdout and stack.environment["MLFLOW_TRACKING_URI"] in done.stdout
    for secret in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD"):
        assert stack.environment[secret] not in done.stdout + done.stderr
    assert f'the user winnow and "password" of {stack.home}/secrets.json' in done.stdout
    assert {state.name: state.pid for state in Stack(stack.home).components()} == before
    known = f"{stack.environment['PREFECT_API_URL']}/deployments/name/compress"
    deadline = time.monotonic() + 90
    while fetch(f"{known}/nightly", timeout=10, headers=stack.prefect_headers)[0] != 200:
        assert time.monotonic() < deadline, Daemon("deploy", stack.home).tail(30)
        time.sleep(0.3)
    nightly = json.loads(fetch(f"{known}/nightly", timeout=10, headers=stack.prefect_headers)[1])
    assert [schedule["active"] for schedule in nightly["schedules"]] == [False]
    assert nightly["entrypoint"].startswith("flows.compress") and nightly["work_pool_name"] == "winnow"
    assert fetch(f"{known}/compress", timeout=10, headers=stack.prefect_headers)[0] == 200


def test_a_taken_port_is_an_error_in_words(tmp_path: Path) -> None:
    import socket

    numbers = ports.pick(4)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        flags = zip(("--s3-port", "--mlflow-port", "--endpoint-port", "--admin-port"), map(str, numbers), strict=True)
        winnow = Winnow(tmp_path, tmp_path / ".winnow")
        done = winnow("up", *(part for pair in flags for part in pair), "--prefect-port", str(number))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"port {number} is taken by " in done.stderr and "--prefect-port" in done.stderr
    assert census(tmp_path / ".winnow") == {}


def test_down_without_a_stack(tmp_path: Path) -> None:
    done = Winnow(tmp_path, tmp_path / ".winnow")("down")
    assert (done.returncode, done.stdout) == (0, "Nothing was running.\n")


@pytest.mark.parametrize("command", [up_command, down_command, status_command, logs_command, doctor_command])
def test_help_shows_an_example(command: Any) -> None:
    done = CliRunner().invoke(command, ["--help"])
    assert done.exit_code == 0
    assert f"winnow {command.name}" in done.output.split("Example:")[1]
