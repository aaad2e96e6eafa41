"""A run from its first moment to its last: its record in the store is true however it ends."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect.runtime import flow_run

from flows.dead_runs import mark_dead_runs
from flows.spec import PipelineSpec, resolve_device
from model_registry.owner import Owner
from model_registry.store import Store, StoreError
from tasks.errors import GateFailed, Interrupted
from tasks.journal import Journal, Line, journal
from tasks.report.run_report import RunError, RunReport, StageLine, save_run
from tasks.stage import Job
from tasks.stage_cache import log_folder


@dataclass
class OngoingRun:
    """The run in hand. ``report`` grows as the run goes on; :meth:`save` makes it visible to others."""

    spec: PipelineSpec
    job: Job
    store: Store
    report: RunReport
    journal: Journal = field(default_factory=Journal)
    _began: float = field(default_factory=time.monotonic)

    def update(self, **changes: Any) -> None:
        """Change fields of the report."""
        self.report = RunReport.model_validate({**dict(self.report), **changes})

    def skip(self, stage: str, reason: str) -> None:
        """Note a stage that the spec leaves out."""
        self.journal.add(Line(stage, "skipped", 0.0, reason=reason))

    def save(self) -> RunReport:
        """Write the report to the store and beside the run's logs."""
        self.update(
            seconds=time.monotonic() - self._began,
            stages=tuple(
                StageLine(name=line.name, status=line.status, seconds=round(line.seconds, 3), reason=line.reason)
                for line in self.journal.lines
            ),
        )
        folder = log_folder(self.job.run_id)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_bytes(self.report.to_json())
        save_run(self.store, self.report)
        return self.report


def new_run_id(model: str) -> str:
    """A run id that sorts by time and names its model: ``20261122-031500-digits-3f9a``."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{model}-{secrets.token_hex(2)}"


def make_job(spec: PipelineSpec, run_id: str) -> Job:
    """What the stages of this run share."""
    return Job(
        run_id=run_id,
        model=spec.model,
        store=os.environ.get("WINNOW_STORE", "s3://winnow"),
        workload=spec.workload,
        seed=spec.seed,
        device=resolve_device(spec.device),
        limits={str(stage): limits for stage, limits in spec.limits.items()},
    )


@contextmanager
def open_run(spec: PipelineSpec, run_id: str | None = None) -> Iterator[OngoingRun]:
    """Begin a run; whatever happens in the body, its record ends as released, registered, refused, failed or interrupted.

    Raises:
        StoreUnavailable, StoreDenied: before anything is recorded.
    """
    job = make_job(spec, run_id or new_run_id(spec.model))
    store = Store(job.store)
    store.ping()
    mark_dead_runs(store, spec.model)
    report = RunReport(
        run_id=job.run_id,
        status="running",
        model=spec.model,
        started=datetime.now(UTC),
        git_commit=_git_commit(Path(spec.workload.folder or ".")),
        spec=spec.model_dump(mode="json", by_alias=True),
        owner=Owner.current(),
        prefect_run=str(flow_run.id) if flow_run.id else None,
        links={"prefect": flow_run.ui_url} if flow_run.ui_url else {},
    )
    run = OngoingRun(spec, job, store, report)
    run.save()
    token = journal.set(run.journal)
    try:
        yield run
    except BaseException as error:
        _failed(run, error)
        raise
    finally:
        journal.reset(token)


def _failed(run: OngoingRun, error: BaseException) -> None:
    stage, cause = run.journal.failure or ("flow", error)
    interrupted = isinstance(error, KeyboardInterrupt | Interrupted | SystemExit)
    status = "refused" if isinstance(error, GateFailed) else "interrupted" if interrupted else "failed"
    log = log_folder(run.job.run_id) / f"{stage.replace(':', '-')}.log"
    run.update(
        status=status,
        error=RunError(
            stage=stage,
            type=type(cause).__name__,
            message=str(cause),
            log=str(log) if log.exists() else None,
            resume=f"winnow run {os.environ.get('WINNOW_SPEC', run.spec.model)}",
        ),
    )
    try:
        run.save()
    except StoreError as lost:  # the store may be the very thing that failed; report.json beside the logs is written
        error.add_note(f"and the run's record could not be written to the store: {lost}")


def _git_commit(folder: Path) -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
