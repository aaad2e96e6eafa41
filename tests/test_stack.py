"""The real stack: what it opens, what it gives away, and that nothing is lost when it is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patience import wait_for

from infra import procfs
from infra.component import fetch, fetch_when_free
from infra.daemon import census
from infra.stack import NAMES, Stack
from model_registry.quiet import QUIET

if TYPE_CHECKING:
    from conftest import RunningStack


# Stands for a stage: a process in a session of its own that would live for ten minutes.
_FLOW = """
import subprocess, sys, time
from pathlib import Path
from prefect import flow

@flow
def linger(note: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    Path(note).write_text(str(child.pid))
    time.sleep(600)
"""


def post(url: str, body: dict[str, Any], who: dict[str, str]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json", **who}
    status, answer = fetch_when_free(url, method="POST", body=json.dumps(body).encode(), headers=headers, timeout=20)
    assert status in {200, 201}, (status, answer)
    found: dict[str, Any] = json.loads(answer)
    return found


def in_store(stack: RunningStack, code: str) -> str:
    """Run code with ``store`` in a process that has the stack's environment."""
    prelude = "from model_registry.store import Store; store = Store.from_environment(); "
    done = subprocess.run(
        [sys.executable, "-c", prelude + code],
        env={**os.environ, **stack.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def members(stack: RunningStack) -> list[procfs.Process]:
    return [process for found in census(stack.home).values() for process in found]


def test_every_component_answers_and_is_told_with_its_memory(stack: RunningStack) -> None:
    states = Stack(stack.home).components()
    assert {state.name: state.state for state in states} == dict.fromkeys(NAMES, "up")
    assert all(10e6 < state.rss < 2e9 for state in states)
    assert sum(state.rss for state in states) < 4e9  # at the end of a long session; a fresh one takes about 1e9


def test_everything_listens_on_loopback_only(stack: RunningStack) -> None:
    ours = {f"socket:[{row[9]}]" for row in listeners()}
    addresses = {row[9]: row[1].rsplit(":", 1)[0] for row in listeners()}
    open_by_us = set()
    for process in members(stack):
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            try:
                open_by_us.add(os.readlink(entry))  # noqa: PTH115 - a socket is no path
            except OSError:
                continue
    inodes = {name.removeprefix("socket:[").removesuffix("]") for name in open_by_us & ours}
    assert len(inodes) >= 14  # S3 and its nine, MLflow, Prefect, its worker, the endpoint twice
    assert {addresses[inode] for inode in inodes} == {"0100007F"}  # 127.0.0.1


def listeners() -> list[list[str]]:
    rows = []
    for table in ("tcp", "tcp6"):
        rows += [line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    return [row for row in rows if row[3] == "0A"]


def test_nothing_calls_home_and_no_secret_is_on_a_command_line(stack: RunningStack) -> None:
    for state in Stack(stack.home).components():
        settings = Path(f"/proc/{state.pid}/environ").read_bytes().split(b"\0")
        for name, value in QUIET.items():
            assert f"{name}={value}".encode() in settings, (state.name, name)
    for process in members(stack):
        line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "WINNOW_ADMIN_TOKEN", "MLFLOW_TRACKING_PASSWORD"):
            assert stack.environment[name].encode() not in line
        if b"weed" in line:
            assert b"telemetry=false" in line


def test_the_environment_reaches_every_component(stack: RunningStack) -> None:
    assert in_store(stack, "store.put('reach', b'1'); print(store.get('reach'))") == "b'1'"
    mlflow, prefect = stack.mlflow_headers, stack.prefect_headers
    post(f"{stack.environment['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/search", {"max_results": 1}, mlflow)
    post(f"{stack.environment['PREFECT_API_URL']}/flows/filter", {}, prefect)
    assert fetch(f"{stack.environment['WINNOW_ENDPOINT']}/v2/health/live", timeout=5)[0] == 200
    admin = f"{stack.environment['WINNOW_ENDPOINT_ADMIN']}/admin/models"
    token = {"Authorization": f"Bearer {stack.environment['WINNOW_ADMIN_TOKEN']}"}
    assert fetch(admin, timeout=5, headers=token)[0] == 200
    assert fetch(admin, timeout=5)[0] == 401


def test_all_of_it_killed_comes_back_with_the_data(stack: RunningStack) -> None:
    in_store(stack, "store.put('kept', b'blob'); store.write_record('kept.json', b'record')")
    mlflow = f"{stack.environment['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments"
    prefect = stack.environment["PREFECT_API_URL"]
    experiment = post(f"{mlflow}/create", {"name": "kept"}, stack.mlflow_headers)["experiment_id"]
    flow = post(f"{prefect}/flows/", {"name": "kept"}, stack.prefect_headers)["id"]
    whole = Stack(stack.home)
    before = {state.name: state.pid for state in whole.components()}
    for process in members(stack):
        os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: {state.state for state in whole.components()} == {"down"})

    whole.up()

    assert {state.state for state in whole.components()} == {"up"}
    assert all(state.pid != before[state.name] for state in whole.components())
    assert whole.environment() == stack.environment
    assert in_store(stack, "print(store.get('kept'), store.read_record('kept.json'))") == "b'blob' b'record'"
    by_name = f"{mlflow}/get-by-name?experiment_name=kept"
    status, answer = fetch(by_name, timeout=10, headers=stack.mlflow_headers)
    assert status == 200 and json.loads(answer)["experiment"]["experiment_id"] == str(experiment)
    assert fetch(f"{prefect}/flows/{flow}", timeout=10, headers=stack.prefect_headers)[0] == 200


def test_down_leaves_nothing_running_not_even_a_flow_run(stack: RunningStack, tmp_path: Path) -> None:
    api, note = stack.environment["PREFECT_API_URL"], tmp_path / "pid"
    (tmp_path / "lingering.py").write_text(_FLOW)
    flow = post(f"{api}/flows/", {"name": "linger"}, stack.prefect_headers)["id"]
    deployment = post(
        f"{api}/deployments/",
        {
            "name": "linger",
            "flow_id": flow,
            "entrypoint": "lingering.py:linger",
            "work_pool_name": "winnow",
            "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(tmp_path)}}],
        },
        stack.prefect_headers,
    )["id"]
    begin, parameters = f"{api}/deployments/{deployment}/create_flow_run", {"parameters": {"note": str(note)}}
    run = post(begin, parameters, stack.prefect_headers)["id"]
    stage = int(wait_for(lambda: note.exists() and note.read_text()))
    whole = Stack(stack.home)
    pids = [process.pid for process in members(stack)]
    assert stage in pids  # it left the session and is known all the same
    os.kill(next(state.pid for state in whole.components() if state.name == "mlflow") or 0, signal.SIGKILL)

    ended = whole.down()

    assert ended["worker"] >= 3 and set(ended) >= {"s3", "prefect", "worker", "endpoint"}
    assert members(stack) == []
    assert [pid for pid in pids if (now := procfs.look_at_process(pid)) and not now.zombie] == []
    assert not list(Path("/tmp").glob(f"seaweedfs-*-{inner_port(whole, 'filer.grpc')}.sock"))
    whole.up()
    state = json.loads(fetch(f"{api}/flow_runs/{run}", timeout=10, headers=stack.prefect_headers)[1])["state"]
    assert state["type"] in {"CRASHED", "CANCELLED", "FAILED"}  # and not for ever Running


def inner_port(stack: Stack, name: str) -> int:
    settings = stack.home.settings()
    assert settings is not None
    return settings.inner_ports[name]
