"""Rows of MLflow and Prefect that nobody needs any more, on the real servers."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import RunningStack
from winnow_command import Winnow

from flows.prefect_garbage import find_old_flow_runs, remove_flow_runs
from infra.mlflow_database import database_url, empty_trash
from model_registry.mlflow_garbage import find_mlflow_garbage, remove_mlflow_garbage
from model_registry.mlflow_rest import MlflowServer, RegistryError, pairs

DAY = 86_400.0


class Rows:
    """An experiment of the test's own, and what lies in it."""

    def __init__(self, uri: str) -> None:
        self.name = f"garbage-{uuid.uuid4().hex[:8]}"
        self.server = MlflowServer(uri)
        self.experiment = self.server.post("experiments/create", name=self.name)["experiment_id"]

    def run(self, family: str, *, days_ago: float, ended: bool = True) -> str:
        """A row of the pipeline run ``family``."""
        at = int((time.time() - days_ago * DAY) * 1000)
        tags = pairs({"winnow.run_id": family} if family else {"mine": "yes"})
        body = {"experiment_id": self.experiment, "run_name": family, "start_time": at, "tags": tags}
        run_id = str(self.server.post("runs/create", **body)["run"]["info"]["run_id"])
        if ended:
            self.server.post("runs/update", run_id=run_id, status="FINISHED", end_time=at + 1000)
        return run_id

    def model(self, run_id: str) -> str:
        """A model that the run logged, and names as its own."""
        body = {"experiment_id": self.experiment, "name": "m", "source_run_id": run_id, "model_type": "onnx"}
        model_id = str(self.server.post("logged-models", **body)["model"]["info"]["model_id"])
        self.server.send("PATCH", f"logged-models/{model_id}", {"model_id": model_id, "status": "LOGGED_MODEL_READY"})
        self.names(run_id, model_id)
        return model_id

    def names(self, run_id: str, model_id: str) -> None:
        self.server.post("runs/outputs", run_id=run_id, models=[{"model_id": model_id, "step": 0}])

    def version(self, run_id: str, model_id: str) -> None:
        self.server.post("registered-models/create", name=self.name)
        body = {"source": f"models:/{model_id}", "model_id": model_id, "run_id": run_id}
        self.server.post("model-versions/create", name=self.name, **body)

    def there(self, run_id: str) -> str:
        """Its lifecycle stage; empty where MLflow knows it no more."""
        try:
            return str(self.server.get("runs/get", run_id=run_id)["run"]["info"]["lifecycle_stage"])
        except RegistryError as error:
            assert error.code == "RESOURCE_DOES_NOT_EXIST"
            return ""


@pytest.fixture
def rows(stack: RunningStack, monkeypatch: pytest.MonkeyPatch) -> Rows:
    for name, value in stack.environment.items():
        monkeypatch.setenv(name, value)
    return Rows(stack.environment["MLFLOW_TRACKING_URI"])


def test_old_rows_of_mlflow_go_and_what_anything_needs_stays(rows: Rows, stack: RunningStack, tmp_path: Path) -> None:
    old = [rows.run("r-old", days_ago=40), rows.run("r-old", days_ago=41)]
    unneeded, shared = rows.model(old[1]), rows.model(old[1])
    young = rows.run("r-young", days_ago=3)
    rows.names(young, shared)  # a later run found it there
    of_young_family = [rows.run("r-mixed", days_ago=40), rows.run("r-mixed", days_ago=2)]
    registered = [rows.run("r-registered", days_ago=40), rows.run("r-registered", days_ago=40)]
    rows.version(registered[1], rows.model(registered[1]))
    kept, running = rows.run("r-kept", days_ago=40), rows.run("r-running", days_ago=40, ended=False)
    somebodys = rows.run("", days_ago=400)
    stays = [young, *of_young_family, *registered, kept, running, somebodys]

    garbage = find_mlflow_garbage(rows.server.uri, kept={"r-kept"}, days=30, now=time.time())
    assert set(garbage.runs) == set(old) and garbage.models == (unneeded,)
    counted = Winnow(tmp_path, stack.home)("gc", "--json")
    found = json.loads(counted.stdout)["found"]
    assert found["runs in MLflow"]["count"] == 3, "nothing in the store says that one is to be kept"
    assert {rows.there(run) for run in old} == {"active"}, "only counted"

    remove_mlflow_garbage(rows.server.uri, garbage)
    assert {rows.there(run) for run in old} == {"deleted"} and {rows.there(run) for run in stays} == {"active"}
    remove_mlflow_garbage(rows.server.uri, garbage)  # again, as after a kill
    database = database_url(stack.home, "")
    empty_trash(database, f"{stack.environment['WINNOW_STORE']}/mlflow", days=1)
    assert {rows.there(run) for run in old} == {"deleted"}, "it has not lain there for long"
    empty_trash(database, f"{stack.environment['WINNOW_STORE']}/mlflow", days=0)
    assert {rows.there(run) for run in old} == {""} and {rows.there(run) for run in stays} == {"active"}
    models = rows.server.every("logged-models/search", "models", experiment_ids=[rows.experiment])
    ids = {model["info"]["model_id"] for model in models}
    assert shared in ids and unneeded not in ids and len(ids) == 2


@pytest.fixture
def api(stack: RunningStack) -> Iterator[httpx.Client]:
    url, headers = stack.environment["PREFECT_API_URL"], stack.prefect_headers
    with httpx.Client(base_url=url, headers=headers, timeout=20) as client:
        yield client


def test_flow_runs_that_ended_long_ago_go_and_others_stay(rows: Rows, api: httpx.Client) -> None:
    def post(path: str, body: Any) -> Any:
        return api.post(path, json=body).raise_for_status().json()

    ours, other = (post("/flows/", {"name": name})["id"] for name in ("compress", "somebodys"))

    def flow_run(flow: str, kind: str) -> str:
        return str(post("/flow_runs/", {"flow_id": flow, "state": {"type": kind}})["id"])

    later = time.time() + 31 * DAY
    ended = {flow_run(ours, kind) for kind in ("COMPLETED", "FAILED", "CRASHED")}
    stays = {flow_run(ours, "RUNNING"), flow_run(other, "COMPLETED")}
    assert ended.isdisjoint(find_old_flow_runs(days=30, now=time.time()))
    found = set(find_old_flow_runs(days=30, now=later))
    assert ended <= found and stays.isdisjoint(found)
    remove_flow_runs(sorted(ended))
    remove_flow_runs(sorted(ended))
    assert ended.isdisjoint(find_old_flow_runs(days=30, now=later))
    assert {api.get(f"/flow_runs/{one}").status_code for one in ended} == {404}
    assert {api.get(f"/flow_runs/{one}").status_code for one in stays} == {200}
