"""A run from its first moment to its last: its record in the store is true however it ends."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run

from flows.dead_runs import mark_dead_runs
from flows.lineage import Made
from flows.released import entry_of_run
from flows.spec import PipelineSpec, resolve_device
from model_registry.ledger import Ledger
from model_registry.mlflow_rest import RegistryError
from model_registry.owner import Owner
from model_registry.store import Store, StoreError
from tasks.evidence.decision import Decision
from tasks.release.deployment import reconcile
from tasks.release.ledger_protocol import patiently
from tasks.report.flip_pictures import Flips
from tasks.report.pages import write_report
from tasks.report.run_report import RunError, RunReport, StageLine, describe_variants, save_run
from tasks.running.errors import GateFailed, Interrupted
from tasks.running.journal import Journal, Line, journal
from tasks.running.launch import end_all, kept_processes
from tasks.running.stage import Job, checked_run_id
from tasks.running.stage_cache import log_folder

T = TypeVar("T")
STOPPED = (KeyboardInterrupt, SystemExit, TerminationSignal, Interrupted)
"""What a run raises that somebody stopped: a person, or the worker that supervises it."""


@dataclass
class OngoingRun:
    """The run in hand. ``report`` grows as the run goes on; :meth:`save` makes it visible to others."""

    spec: PipelineSpec
    job: Job
    store: Store
    report: RunReport
    journal: Journal = field(default_factory=Journal)
    flips: Flips | None = None
    """The test samples whose answers changed, for the pages."""
    _unseen: bool = False
    _began: float = field(default_factory=time.monotonic)

    def update(self, **changes: Any) -> None:
        """Change fields of the report."""
        self.report = RunReport.model_validate({**dict(self.report), **changes})

    def note(self, text: str) -> None:
        """Add a sentence to the report."""
        self.update(notes=(*self.report.notes, text))

    def show(self, view: Callable[[], T]) -> T | None:
        """What ``view`` does in MLflow, which only shows the run; where it fails a warning, and None from then on."""
        if self._unseen:
            return None
        try:
            return view()
        except RegistryError as lost:
            self._unseen = True
            for name in [name for name, why in self.journal.failures.items() if why is lost]:
                del self.journal.failures[name]
            self.warn(f"MLflow does not show this run: {lost}")
            return None

    def warn(self, text: str) -> None:
        """Add a warning to the report, if there is a text."""
        if text:
            self.update(warnings=(*self.report.warnings, text))

    def describe(self, made: Made) -> None:
        """Put what was made and measured into the report."""
        described = describe_variants(made.measurements, made.parents, made.controls)
        self.update(**described, warnings=made.warnings, search=made.search)
        for text in made.findings:
            self.note(text)
        for name in ("distill", "prune", "quantize"):
            if made.search is None and getattr(self.spec, name) is None:
                self.journal.add(Line(name, "skipped", 0.0, reason="not in the spec"))
        self.save()

    def decide(self, decision: Decision | None) -> None:
        """Put the gates' decision into the report."""
        if decision is not None:
            self.update(decision=decision, chosen=decision.chosen, champion=decision.champion)

    def settle(self, error: BaseException) -> None:
        """The run ends with this error: say as what, in which stage, why and how to go on. After its release, which
        the ledger tells, it has released all the same."""
        if (version := self._released()) is not None:
            self.update(status="released", version=version)
            self.warn(f"version {version} was released, and then the run ended with {type(error).__name__}: {error}")
            return
        stage, cause = self.journal.failure or ("flow", error)
        if isinstance(error, GateFailed):  # it was raised with the table of all variants added
            cause = error
        interrupted = isinstance(error, STOPPED)
        log = log_folder(self.job.run_id) / f"{stage.replace(':', '-')}.log"
        self.update(
            status="refused" if isinstance(error, GateFailed) else "interrupted" if interrupted else "failed",
            error=RunError(
                stage=stage,
                type=type(cause).__name__,
                message=str(cause),
                log=str(log) if log.exists() else None,
                resume=f"winnow run {os.environ.get('WINNOW_SPEC', self.spec.model)}",
            ),
        )

    def _released(self) -> int | None:
        """The version that this run made champion; None where it did not, or the ledger cannot be read."""
        if self.report.status == "released" or self.report.version is None or not self.spec.deploy:
            return self.report.version if self.report.status == "released" else None
        try:
            entry = entry_of_run(self.store, self.report)
        except StoreError as lost:
            self.warn(f"whether version {self.report.version} was released cannot be told: {lost}")
            return None
        return entry.to_version if entry is not None and entry.state == "committed" else None

    def recover(self, text: str) -> None:
        """Go on after an error that was repaired; the text says what it was."""
        self.journal.failures.clear()
        self.journal.found.clear()
        self.update(status="running", error=None)
        self.note(text)

    @property
    def origin(self) -> dict[str, str]:
        """Tags that lead from MLflow back to Prefect and git."""
        tags = {
            "prefect.flow_run_id": self.report.prefect_run,
            "prefect.flow_run_url": self.report.links.get("prefect"),
            "mlflow.source.git.commit": self.report.git_commit,
        }
        return {name: value for name, value in tags.items() if value}

    @property
    def pages(self) -> Path:
        """Where report.html and its companions are written."""
        return log_folder(self.job.run_id) / "report"

    def save(self, *, patient: bool = True) -> RunReport:
        """Write the report to the store and beside the run's logs; patiently, where nobody waits for us to leave."""
        self.update(
            seconds=time.monotonic() - self._began,
            stages=tuple(
                StageLine(
                    name=line.name,
                    status=line.status,
                    seconds=round(line.seconds, 3),
                    compute_seconds=round(line.compute_seconds, 3),
                    reason=line.reason,
                    host=line.host,
                )
                for line in self.journal.lines
            ),
        )
        try:
            self._write_beside_logs()
        finally:  # a full disk is no reason for the store not to know
            if patient:
                patiently(lambda: save_run(self.store, self.report))
            else:
                save_run(self.store, self.report)
        return self.report

    def _write_beside_logs(self) -> None:
        folder = log_folder(self.job.run_id)
        target, partial = folder / "report.json", folder / f".report-{os.getpid()}.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(self.report.to_json())
            partial.replace(target)  # whoever reads it, reads it whole
        except OSError:
            for stale in (partial, target):  # rather none than one that is not true any more
                stale.unlink(missing_ok=True)
            raise


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
        parallel=spec.parallel,
        place=spec.place,
        measure_on=spec.measure_on,
        limits={str(stage): limits for stage, limits in spec.limits.items()},
    )


@contextmanager
def open_run(spec: PipelineSpec, run_id: str | None = None) -> Iterator[OngoingRun]:
    """Begin a run; whatever happens in the body, its record ends as what became of it.

    Raises:
        SpecError: the run id cannot name a folder.
        StoreUnavailable, StoreDenied: before anything is recorded.
    """
    job = make_job(spec, checked_run_id(run_id or new_run_id(spec.model)))
    store = Store(job.store)
    store.ping()
    if spec.deploy and Ledger(store).pending(spec.model):
        reconcile(store, spec.model)  # a release died between two steps: complete or undo it first
    mark_dead_runs(store, spec.model)  # by what became of their releases
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
        with kept_processes():
            yield run
    except BaseException as error:
        _failed(run, error)
        raise
    finally:
        journal.reset(token)


def _failed(run: OngoingRun, error: BaseException) -> None:
    if isinstance(error, STOPPED):
        end_all()  # Prefect waits for its threads, and these for their processes
    if run.report.status == "running":  # a released run stays released, whatever fails after the commit
        run.settle(error)
    try:
        run.save(patient=not isinstance(error, STOPPED))
        write_report(run.report, run.pages, run.flips)
    except (StoreError, OSError) as lost:  # what failed may be the store or the disk; the first error is what counts
        error.add_note(f"and the run's record or report could not be written: {lost}")


def _git_commit(folder: Path) -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
