"""Runs whose process died without a word: found by their owner, and marked in the store, Prefect and MLflow."""

from __future__ import annotations

import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from flows.released import entry_of_run
from model_registry.authorization import prefect_authorization
from model_registry.ledger import Entry, LedgerError
from model_registry.store import Store
from tasks.report.run_records import readable_run
from tasks.report.run_report import RunReport, save_run

if TYPE_CHECKING:
    import httpx

_log = logging.getLogger("winnow.run")
_LOOK_BACK = 50
ANSWER_SECONDS = 5.0
_IN_PREFECT = {
    "released": "COMPLETED",
    "registered": "COMPLETED",
    "refused": "FAILED",
    "failed": "FAILED",
    "interrupted": "CANCELLED",
}
_BUSY_PAUSES = (0.1, 0.3, 1.0, 2.0, 4.0)


def mark_dead_runs(store: Store, model: str | None = None) -> list[RunReport]:
    """Mark every run that says it is running and whose process is provably gone: as crashed, or as released if it died
    after that. One whose release is not decided yet is left alone. One that had written how it ended, and died before
    Prefect knew, ends there too.

    Only the newest runs are looked at: ids sort by time. Returns those that were marked.
    """
    marked = []
    newest = store.list_records("runs/")[-_LOOK_BACK:]
    with ThreadPoolExecutor(max_workers=8) as pool:
        ids = [key.removeprefix("runs/").removesuffix(".json") for key in newest]
        reports = list(pool.map(lambda run_id: readable_run(store, run_id), ids))
    _end_what_prefect_lists_as_running([report for report in reports if report is not None])
    for report in reports:
        if report is None or report.status != "running" or report.state != "crashed":
            continue
        if model is not None and report.model != model:
            continue
        try:
            entry = entry_of_run(store, report)
        except LedgerError as error:
            _log.warning("what became of run %s cannot be told: %s", report.run_id, error)
            continue
        if entry is not None and entry.state == "pending":
            continue
        dead = _as_it_ended(report, entry)
        _log.info("run %s died; marking it as %s", report.run_id, dead.status)
        if report.prefect_run:
            _end_in_prefect(report.prefect_run, dead)
        save_run(store, dead)
        marked.append(dead)
    return marked


def _as_it_ended(report: RunReport, entry: Entry | None) -> RunReport:
    if entry is None or entry.state != "committed":
        return RunReport.model_validate({**dict(report), "status": "crashed"})
    lost = f"version {entry.to_version} was released; the run's process died before it could write its report"
    changes = {"status": "released", "version": entry.to_version, "warnings": (*report.warnings, lost)}
    return RunReport.model_validate({**dict(report), **changes})


def set_prefect_state(flow_run_id: str, kind: str, message: str) -> None:
    """Force a flow run and its unfinished task runs into a final state over Prefect's REST API.

    Prefect itself learns of a killed process only where a worker supervises it.

    Raises:
        httpx.HTTPError: the server does not answer, refuses, or is busy for longer than some seconds.
    """
    import httpx

    api = os.environ["PREFECT_API_URL"]
    state = {"type": kind, "name": kind.capitalize(), "message": message}
    with httpx.Client(base_url=api, timeout=ANSWER_SECONDS, headers=prefect_authorization(os.environ)) as client:
        filters = {
            "flow_runs": {"id": {"any_": [flow_run_id]}},
            "task_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "SCHEDULED"]}}},
        }
        forced = {"state": state, "force": True}
        for task_run in post_patiently(client, "/task_runs/filter", filters).json():
            post_patiently(client, f"/task_runs/{task_run['id']}/set_state", forced)
        post_patiently(client, f"/flow_runs/{flow_run_id}/set_state", forced)


def post_patiently(client: httpx.Client, path: str, body: dict[str, Any]) -> httpx.Response:
    """Prefect answers 503 for as long as its SQLite is locked by another request."""
    for pause in _BUSY_PAUSES:
        answer = client.post(path, json=body)
        if answer.status_code != 503:
            return answer.raise_for_status()
        time.sleep(pause)
    return client.post(path, json=body).raise_for_status()


def _end_what_prefect_lists_as_running(reports: list[RunReport]) -> None:
    import httpx

    ended = {
        report.prefect_run: report
        for report in reports
        if report.prefect_run and report.status != "running" and report.owner and report.owner.provably_dead()
    }
    if not ended or not (api := os.environ.get("PREFECT_API_URL")):
        return
    wanted = {
        "flow_runs": {"id": {"any_": list(ended)}, "state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}
    }
    try:
        with httpx.Client(base_url=api, timeout=ANSWER_SECONDS, headers=prefect_authorization(os.environ)) as client:
            left = post_patiently(client, "/flow_runs/filter", wanted).json()
    except httpx.HTTPError as error:
        _log.warning("Prefect could not be asked for runs that it takes for running: %s", error)
        return
    for flow_run in left:
        _end_in_prefect(flow_run["id"], ended[flow_run["id"]])


def _end_in_prefect(flow_run_id: str, dead: RunReport) -> None:
    import httpx

    kind = _IN_PREFECT.get(dead.status, "CRASHED")
    try:
        set_prefect_state(flow_run_id, kind, "the process of the run died")
    except httpx.HTTPError as error:
        # The run may belong to another Prefect server, or its history was cleared: our own record is the truth.
        _log.warning("Prefect run %s could not be marked as %s: %s", flow_run_id, dead.status, error)
