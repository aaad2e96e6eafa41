"""The one cache: a stage's result is looked up by everything that determines it, verified, or computed once.

``stages/<key>.json`` holds the result and, beside it, the ingredients of its key, so that why something ran again is a
diff. A failure is never stored. An outage is an error, never a miss.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from model_registry.lease import lease
from model_registry.manifest import FileEntry, canonical_json
from model_registry.store import CorruptObject, Store
from model_registry.variant import Record, Variant
from tasks.running.files_read import changed_since
from tasks.running.journal import journal
from tasks.running.launch import Progress, cores, prewarm_if_kept, run_child
from tasks.running.machine_lock import machine_lock
from tasks.running.process_guard import guarded
from tasks.running.ranked import run_ranks
from tasks.running.ray_place import run_on_ray
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Outcome, Stage, checked_run_id
from tasks.running.stage_call import StageCall
from tasks.running.stage_plan import Plan, planning

_log = logging.getLogger("winnow.stage")
listener: ContextVar[Callable[[str, float, str], None] | None] = ContextVar("listener", default=None)
"""Told ``(stage name, fraction, text)`` of every step forward."""


class StageRecord(Record):
    """A stage's result as stored: what it made, from what, and where."""

    key: str
    stage: str
    name: str
    version: str
    ingredients: dict[str, Any]
    variants: tuple[Variant, ...]
    values: dict[str, Any]
    files: tuple[FileEntry, ...]
    roles: dict[str, str] = Field(default_factory=dict)
    compute_seconds: float
    run_id: str
    host: str


def run_stage(
    stage: Stage,
    job: Job,
    spec: BaseModel,
    *,
    data: DataRef | None = None,
    inputs: Mapping[str, Variant] | None = None,
    extra: Mapping[str, Any] | None = None,
    label: str = "",
) -> Outcome:
    """Return the stage's result from the store, or compute it in a child process and store it.

    Arguments: see :class:`tasks.running.stage_call.StageCall`.

    Raises:
        StoreUnavailable, StoreDenied: the store cannot be asked.
        Exception: what the child raised; see :func:`tasks.running.launch.run_child`.
    """
    call = StageCall(stage, job, spec, data, inputs or {}, extra or {}, label)
    started = time.monotonic()
    notes = journal.get()
    try:
        found = notes.found.get(call.key) if notes is not None else None
        outcome = _again(call, found, started) if found is not None else _find_or_compute(call, started)
    except BaseException as error:
        if notes is not None:
            notes.fail(call.name, error, time.monotonic() - started)
        raise
    if notes is not None:
        notes.add_outcome(outcome)
    return outcome


def _again(call: StageCall, found: Outcome, started: float) -> Outcome:
    """What this run has found or made before, as the call's answer: it may have been asked under another label."""
    own = found.status == "computed"
    return found.model_copy(
        update={
            "name": call.name,
            "status": "reused",
            "reason": f"made by run {call.job.run_id}" if own else found.reason,
            "seconds": time.monotonic() - started,
            "compute_seconds": 0.0,
            "host": "",
        }
    )


def _find_or_compute(call: StageCall, started: float) -> Outcome:
    store = Store(call.job.store)
    latest = f"latest/{call.job.model}/{call.file_stem}.json"
    record, broken = _find(store, call.key)
    why = "" if record is not None else broken or call.difference(store.get(latest))
    plan = planning.get()
    if plan is not None and (record is not None or not call.stage.looks):
        return _plan(plan, call, record, why, started)
    if record is not None:
        _tell(call.name, 1.0, "reused")
        return _outcome(call, record, started, reason=f"made by run {record.run_id}")

    def on_wait(holder: object, waited: float) -> None:
        _tell(call.name, 0.0, f"waiting for {holder or 'another run'} ({waited:.0f} s)")

    limits = call.job.limits_of(call.stage.name)
    with lease(store, f"stages/{call.key}", wait_seconds=limits.seconds + 60, on_wait=on_wait) as held:
        record, broken = _find(store, call.key)  # another run may have made it while we waited
        if record is not None:
            _tell(call.name, 1.0, "reused")
            return _outcome(call, record, started, reason=f"made by run {record.run_id} meanwhile")
        _log.info("%s: computing (%s)", call.name, why)
        record = _compute(call)
        for variant in record.variants:
            store.save_variant(variant)
        held.check()
        if broken:
            store.write_record(f"stages/{call.key}.json", record.to_json())
        else:
            store.create_record(f"stages/{call.key}.json", record.to_json())
        store.put(latest, canonical_json(call.ingredients))
        for checkpoint in store.list_objects(f"checkpoints/{call.key}/"):  # what it would have resumed from
            store.delete(checkpoint)
    _tell(call.name, 1.0, "done")
    if plan is not None:
        plan.looked(call, why)
    return _outcome(call, record, started, reason=why, computed=True)


def is_stored(stage: Stage, job: Job, spec: BaseModel, *, data: DataRef | None = None) -> bool:
    """Whether :func:`run_stage` would find the result, whole."""
    return _find(Store(job.store), StageCall(stage, job, spec, data, {}, {}, "").key)[0] is not None


def log_folder(run_id: str) -> Path:
    """Where a run's stage logs lie; SpecError for a text that names no folder."""
    return Path(os.environ.get("WINNOW_HOME", ".winnow")).absolute() / "runs" / checked_run_id(run_id)


def _find(store: Store, key: str) -> tuple[StageRecord | None, str]:
    """The record if it and all its files are whole and what its stage read by itself has not changed since.

    Else None and why it cannot be used ('' = there is none).
    """
    try:
        data = store.read_record(f"stages/{key}.json")
    except CorruptObject as error:
        return None, str(error)
    if data is None:
        return None, ""
    try:
        record = StageRecord.from_json(data)
    except ValidationError as error:
        return None, f"its record cannot be read ({error.error_count()} errors)"
    changed = changed_since(record.values.get("read"))
    if changed:
        return None, changed
    entries = [*record.files, *(entry for variant in record.variants for entry in variant.files)]
    if not entries:
        return record, ""
    with ThreadPoolExecutor(max_workers=8) as pool:
        missing = [e.path for e, there in zip(entries, pool.map(store.has_blob, entries), strict=True) if not there]
    return (None, f"missing or corrupt in the store: {', '.join(missing)}") if missing else (record, "")


def _compute(call: StageCall) -> StageRecord:
    """Run the stage's process where the job places it, and describe what it made."""
    here = call.stage.machine_matters and not call.job.measure_on  # of two machines' clocks none is the other's
    remote = call.job.place == "ray" and not here
    answer, host, seconds = _compute_on_cluster(call) if remote else _compute_here(call)
    return StageRecord(
        key=call.key,
        stage=call.stage.name,
        name=call.name,
        version=call.ingredients["source"][:12],
        ingredients=call.ingredients,
        compute_seconds=seconds,
        run_id=call.job.run_id,
        host=host,
        **answer,
    )


def _compute_on_cluster(call: StageCall) -> tuple[dict[str, Any], str, float]:
    """What the stage made on a node, which one, and in how many seconds."""
    began = time.monotonic()
    answer, host = run_on_ray(
        call.request(""),
        name=call.stage.name,
        limits=call.job.limits_of(call.stage.name),
        log_path=log_folder(call.job.run_id) / f"{call.file_stem}.log",
        threads=call.stage.threads or call.job.threads,
        shared=call.shared,
        machines=call.job.measure_on if call.stage.machine_matters else None,
        on_progress=lambda fraction, text: _tell(call.name, fraction, text),
    )
    return answer, host, time.monotonic() - began


def _compute_here(call: StageCall) -> tuple[dict[str, Any], str, float]:
    """The same on this machine, alone if the stage is exclusive."""
    stage, job = call.stage, call.job
    with machine_lock(exclusive=stage.exclusive, on_wait=lambda: _tell(call.name, 0.0, "waiting for the machine")):
        began = time.monotonic()
        folder = log_folder(job.run_id)
        folder.mkdir(parents=True, exist_ok=True)
        workdir = tempfile.mkdtemp(prefix=f"{stage.name}-", dir=guarded().scratch)
        prewarm_if_kept(stage.warms)
        shared, threads = call.shared, stage.threads or job.threads
        ranks = shared.ranks(threads or cores()) if shared else 1
        on_progress: Progress = lambda fraction, text: _tell(call.name, fraction, text)  # noqa: E731
        try:
            run = run_child if ranks == 1 else partial(run_ranks, ranks=ranks)
            answer = run(
                call.request(workdir),
                name=stage.name,
                limits=job.limits_of(stage.name),
                log_path=folder / f"{call.file_stem}.log",
                pool=stage.pool,
                code=call.workload_hash,
                threads=1 if shared else threads,  # or the bits would depend on their number
                on_progress=on_progress,
            )
        finally:
            shutil.rmtree(workdir, ignore_errors=True)
        return answer, socket.gethostname(), time.monotonic() - began


def _plan(plan: Plan, call: StageCall, record: StageRecord | None, why: str, started: float) -> Outcome:
    if record is not None:
        plan.reuse(call, f"made by run {record.run_id}")
        return _outcome(call, record, started, reason="")
    reason, placeholders = plan.compute(call, why)
    return Outcome(
        stage=call.stage.name,
        name=call.name,
        status="computed",
        reason=reason,
        seconds=time.monotonic() - started,
        key=call.key,
        version="",
        variants=placeholders,
        roles={role: v.digest for role, v in zip(call.stage.roles, placeholders, strict=False)},
    )


def _outcome(call: StageCall, record: StageRecord, started: float, *, reason: str, computed: bool = False) -> Outcome:
    """The record as the call's answer: it may have been made under another label."""
    return Outcome(
        stage=call.stage.name,
        name=call.name,
        status="computed" if computed else "reused",
        reason=reason,
        seconds=time.monotonic() - started,
        compute_seconds=record.compute_seconds if computed else 0.0,
        host=record.host if computed else "",
        cost_seconds=record.compute_seconds,
        key=call.key,
        version=record.version,
        variants=record.variants,
        values=record.values,
        files=record.files,
        roles=record.roles,
    )


def _tell(name: str, fraction: float, text: str) -> None:
    told = listener.get()
    if told is not None:
        told(name, fraction, text)
