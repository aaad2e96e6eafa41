"""The deployment of prefect.yaml, run once by the stack's real worker."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from conftest import RunningStack
from patience import wait_for
from winnow_command import Winnow

from flows.commands import deployments
from infra import procfs
from infra.component import fetch, fetch_when_free
from infra.daemon import Daemon, census
from infra.stack import Stack

FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def get(stack: RunningStack, url: str) -> dict[str, Any]:
    status, body = fetch_when_free(url, timeout=20, headers=stack.prefect_headers)
    assert status == 200, (url, status, body)
    found: dict[str, Any] = json.loads(body)
    return found


def create(stack: RunningStack, deployment: dict[str, Any], body: dict[str, Any]) -> tuple[int, bytes]:
    """Ask for a flow run; the answer's status and body."""
    return fetch_when_free(
        f"{stack.environment['PREFECT_API_URL']}/deployments/{deployment['id']}/create_flow_run",
        method="POST",
        body=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", **stack.prefect_headers},
        timeout=20,
    )


def test_the_deployed_flow_runs_to_a_champion(stack: RunningStack) -> None:
    api = stack.environment["PREFECT_API_URL"]
    deployments.deploy_in_background(Stack(stack.home))
    wait_for(lambda: not deployments.missing(stack.environment), what="the deployment")
    assert not deployments.deploy_in_background(Stack(stack.home))  # nothing to do again
    deployment = get(stack, f"{api}/deployments/name/compress/compress")
    assert deployment["parameters"] == {"spec": "digits"} and deployment["enforce_parameter_schema"] is True
    begun = time.time()
    status, body = create(stack, deployment, {"parameters": {"spec": "tiny"}})
    assert status == 201, body
    run = json.loads(body)["id"]

    def ended() -> dict[str, Any] | None:
        found = get(stack, f"{api}/flow_runs/{run}")
        return found if found["state"]["type"] in FINAL else None

    found = wait_for(ended, what="the run", every=0.5)
    log = "\n".join(Daemon("worker", stack.home).tail(60))
    assert found["state"]["type"] == "COMPLETED", f"{found['state']}\n{log}"
    assert found["deployment_id"] == deployment["id"] and found["work_pool_name"] == "winnow"
    reports = [json.loads(path.read_text()) for path in (stack.home / "runs").glob("*/report.json")]
    [report] = [one for one in reports if one["prefect_run"] == run]
    assert report["status"] == "released" and report["model"] == "tiny"
    assert fetch(f"{stack.environment['WINNOW_ENDPOINT']}/v2/models/tiny/ready", timeout=10)[0] == 200
    assert time.time() - begun < 240


def test_a_run_goes_on_whose_worker_is_killed_and_one_that_nobody_carries_ends(
    stack: RunningStack, tmp_path: Path
) -> None:
    api = stack.environment["PREFECT_API_URL"]
    deployments.deploy_in_background(Stack(stack.home))
    wait_for(lambda: not deployments.missing(stack.environment), what="the deployment")

    def begin(name: str, **body: Any) -> str:
        deployment = get(stack, f"{api}/deployments/name/compress/{name}")
        status, answer = create(stack, deployment, body)
        assert status == 201, answer
        return str(json.loads(answer)["id"])

    def state(run: str) -> str:
        return str(get(stack, f"{api}/flow_runs/{run}")["state"]["type"])

    reports = stack.home / "runs"
    before = set(reports.glob("*/report.json"))
    run = begin("compress", parameters={"spec": "tiny", "overrides": ["seed=8", "deploy=false"]})
    wait_for(lambda: set(reports.glob("*/report.json")) - before, what="the run", every=0.3)
    # Killed together with the worker, after Prefect was told of it and before it wrote a record.
    abandoned = begin("nightly", parameters={"spec": "tiny"}, state={"type": "RUNNING"})
    worker = Daemon("worker", stack.home).running()
    assert worker is not None
    mark = f"PREFECT__FLOW_RUN_ID={run}"
    carries = [one for one in census(stack.home)["worker"] if procfs.marked(one.pid, mark) == ""]
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: Daemon("worker", stack.home).running() is None)

    done = Winnow(tmp_path, stack.home)("up")

    assert done.returncode == 0, done.stderr
    assert "its worker and its process died" in done.stdout and state(abandoned) == "CRASHED"
    assert carries and all(procfs.look_at_process(one.pid) is not None for one in carries)
    wait_for(lambda: state(run) in FINAL, what="its end", every=0.5)
    log = "\n".join(Daemon("worker", stack.home).tail(60))
    assert state(run) == "COMPLETED", f"{get(stack, f'{api}/flow_runs/{run}')['state']}\n{log}"


def test_a_run_with_a_wrong_parameter_is_refused_before_it_starts(stack: RunningStack) -> None:
    api = stack.environment["PREFECT_API_URL"]
    deployments.deploy_in_background(Stack(stack.home))
    wait_for(lambda: not deployments.missing(stack.environment), what="the deployment")
    deployment = get(stack, f"{api}/deployments/name/compress/compress")
    status, body = create(stack, deployment, {"parameters": {"spec": 17}})
    assert status == 409 and b"spec" in body
