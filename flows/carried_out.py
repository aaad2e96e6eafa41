"""A run carried out in this process: the flow, and what its record says afterwards."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    temporary_settings,
)

from flows.compress import compress
from flows.dead_runs import set_prefect_state
from flows.ongoing_run import STOPPED, new_run_id
from flows.spec import PipelineSpec
from infra.faults import StackDown
from model_registry.store import Store, StoreError
from tasks.report.run_report import RunReport, load_run
from tasks.running.stage_cache import log_folder

_HUNG_SECONDS = 10.0
_ANSWER_SECONDS = 15.0


def carry_out(spec: PipelineSpec) -> tuple[RunReport, Path | None]:
    """Run the spec; its report, whatever became of it, and the page that shows it.

    Raises:
        KeyboardInterrupt: somebody stopped it; Prefect knows it as cancelled.
        Exception: what a stage failed with. A refusal of the gates is no failure: the report holds it.
    """
    run_id = new_run_id(spec.model)
    # Libraries that could draw bars in a notebook say so, once, where its widgets are not installed.
    warnings.filterwarnings("ignore", message="IProgress not found")
    with settings_of_a_run():
        try:
            state = compress(spec, run_id=run_id, return_state=True)
        except STOPPED:
            tell_prefect_stopped(run_id)
            raise KeyboardInterrupt from None
        report = read_report(run_id)
        if report is None or report.status not in ("released", "registered", "refused"):
            state.result()  # raises what it failed with
    assert report is not None
    page = log_folder(run_id) / "report" / "report.html"
    return report, page if page.is_file() else None


@contextmanager
def settings_of_a_run() -> Iterator[None]:
    """Prefect's settings while a flow runs in this process.

    Raises:
        StackDown: Prefect takes requests and answers none, or cannot be reached for some seconds.
    """
    _wait_for_prefect(os.environ["PREFECT_API_URL"])
    # Prefect may have been imported before the stack was there.
    there = {PREFECT_API_URL: os.environ["PREFECT_API_URL"]}
    if password := os.environ.get("PREFECT_API_AUTH_STRING"):
        there[PREFECT_API_AUTH_STRING] = password
    # Unless somebody asks for heartbeats there are none: a run's end would wait up to a second for their thread, and
    # who died is found by its owner.
    patience = {PREFECT_API_REQUEST_TIMEOUT: _ANSWER_SECONDS}  # of each of the six attempts of its client
    with temporary_settings({**there, **patience}, {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def _wait_for_prefect(url: str) -> None:
    """Its own client does not wait for a server that it never reached, as one that is just being started again."""
    deadline = time.monotonic() + _HUNG_SECONDS
    while True:
        try:
            httpx.get(f"{url}/health", timeout=_HUNG_SECONDS)
            return
        except httpx.TransportError as error:
            if time.monotonic() > deadline or isinstance(error, httpx.TimeoutException):
                raise StackDown(
                    f"Prefect at {url} does not answer within {_HUNG_SECONDS:g} s ({error or type(error).__name__}); "
                    "`winnow logs prefect` may say why, and `winnow down` and `winnow up` start it again"
                ) from error
        time.sleep(0.2)


def read_report(run_id: str) -> RunReport | None:
    """The run's report as written beside its logs, or, where the disk had no room for it, in the store; None where it
    could not even begin."""
    path = log_folder(run_id) / "report.json"
    if path.exists():
        return RunReport.from_json(path.read_bytes())
    try:
        return load_run(Store.from_environment(), run_id)
    except StoreError:  # it is why the run could not begin, and was reported
        return None


def tell_prefect_stopped(run_id: str) -> str:
    """Make Prefect's state true for a run that a person stopped; why that was not possible, or an empty text."""
    report = read_report(run_id)
    if report is None or report.prefect_run is None:
        return ""
    kind = "COMPLETED" if report.status == "released" else "CANCELLED"
    try:
        set_prefect_state(report.prefect_run, kind, "stopped by the user")
    except httpx.HTTPError as error:
        return f"Prefect could not be informed that the run was stopped: {error}"
    return ""
