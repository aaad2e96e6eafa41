"""The one cache: a stage's result is looked up by everything that determines it, verified, or computed once.

``stages/<key>.json`` holds the result and, beside it, the ingredients of its key, so that why something ran again is a
diff. A failure is never stored. An outage is an error, never a miss.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from model_registry.cpu_class import cpu_class, sums_saturate
from model_registry.lease import lease
from model_registry.manifest import FileEntry, canonical_json, hash_bytes
from model_registry.store import Store
from model_registry.variant import Record, Variant
from tasks.running.journal import journal
from tasks.running.launch import Progress, prewarm_if_kept, run_child
from tasks.running.machine_lock import machine_lock
from tasks.running.source_hash import closure_hash
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Outcome, Stage

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
    compute_seconds: float
    run_id: str
    host: str


class PlanLine(Record):
    """One line of ``winnow run --plan``."""

    name: str
    action: str
    reason: str


class Plan(BaseModel):
    """Collects lines while the flow is walked without computing."""

    lines: list[PlanLine] = Field(default_factory=list)
    pending: set[str] = Field(default_factory=set)
    """Digests of placeholders: what does not exist yet."""


planning: ContextVar[Plan | None] = ContextVar("planning", default=None)
"""Set while the flow is only planned."""


def run_stage(
    stage: Stage,
    job: Job,
    spec: BaseModel,
    *,
    data: DataRef | None = None,
    inputs: dict[str, Variant] | None = None,
    extra: dict[str, Any] | None = None,
    label: str = "",
) -> Outcome:
    """Return the stage's result from the store, or compute it in a child process and store it.

    Args:
        stage: what to run.
        job: the run it belongs to.
        spec: the stage's own part of the spec; part of the key.
        data: checked data; its fingerprint is part of the key.
        inputs: variants by role; their digests are part of the key.
        extra: JSON passed on to the child; part of the key.
        label: what it works on, where the stage runs several times.

    Raises:
        StoreUnavailable, StoreDenied: the store cannot be asked.
        Exception: what the child raised; see :func:`tasks.running.launch.run_child`.
    """
    name = f"{stage.name}:{label}" if label else stage.name
    started = time.monotonic()
    notes = journal.get()
    try:
        outcome = _find_or_compute(stage, name, job, spec, data, inputs or {}, extra or {})
    except BaseException as error:
        if notes is not None:
            notes.fail(name, error, time.monotonic() - started)
        raise
    if notes is not None:
        notes.add_outcome(outcome)
    return outcome


def _find_or_compute(
    stage: Stage,
    name: str,
    job: Job,
    spec: BaseModel,
    data: DataRef | None,
    inputs: dict[str, Variant],
    extra: dict[str, Any],
) -> Outcome:
    started = time.monotonic()
    store = Store(job.store)
    parts = ingredients(stage, job, spec, data, inputs, extra)
    key = hash_bytes(canonical_json(parts))
    latest = f"latest/{job.model}/{name.replace(':', '-')}.json"

    def outcome(record: StageRecord, *, computed: bool, reason: str) -> Outcome:
        return Outcome(
            stage=stage.name,
            name=name,
            status="computed" if computed else "reused",
            reason=reason,
            seconds=time.monotonic() - started,
            compute_seconds=record.compute_seconds if computed else 0.0,
            cost_seconds=record.compute_seconds,
            key=key,
            version=record.version,
            variants=record.variants,
            values=record.values,
            files=record.files,
        )

    record, why = _find(store, key)
    plan = planning.get()
    if plan is not None:
        return _plan(plan, stage, name, key, parts, record, why, inputs, store.get(latest), outcome)
    if record is not None:
        _tell(name, 1.0, "reused")
        return outcome(record, computed=False, reason=f"made by run {record.run_id}")
    why = why or _difference(store.get(latest), parts)

    def on_wait(holder: object, waited: float) -> None:
        _tell(name, 0.0, f"waiting for {holder or 'another run'} ({waited:.0f} s)")

    limits = job.limits_of(stage.name)
    with lease(store, f"stages/{key}", wait_seconds=limits.seconds + 60, on_wait=on_wait) as held:
        record, broken = _find(store, key)  # another run may have made it while we waited
        if record is not None:
            _tell(name, 1.0, "reused")
            return outcome(record, computed=False, reason=f"made by run {record.run_id} meanwhile")
        _log.info("%s: computing (%s)", name, why)
        with machine_lock(exclusive=stage.exclusive, on_wait=lambda: _tell(name, 0.0, "waiting for the machine")):
            began = time.monotonic()
            answer = _compute(stage, name, key, job, spec, data, inputs, extra)
            compute_seconds = time.monotonic() - began
        record = StageRecord(
            key=key,
            stage=stage.name,
            name=name,
            version=parts["source"][:12],
            ingredients=parts,
            compute_seconds=compute_seconds,
            run_id=job.run_id,
            host=socket.gethostname(),
            **answer,
        )
        for variant in record.variants:
            store.save_variant(variant)
        held.check()
        if broken:
            store.write_record(f"stages/{key}.json", record.to_json())
        else:
            store.create_record(f"stages/{key}.json", record.to_json())
        store.put(latest, canonical_json(parts))
        for checkpoint in store.list_objects(f"checkpoints/{key}/"):  # what it would have resumed from
            store.delete(checkpoint)
    _tell(name, 1.0, "done")
    return outcome(record, computed=True, reason=why)


def ingredients(
    stage: Stage, job: Job, spec: BaseModel, data: DataRef | None, inputs: dict[str, Variant], extra: dict[str, Any]
) -> dict[str, Any]:
    """Everything that determines the stage's result, as JSON; its hash is the key."""
    parts: dict[str, Any] = {
        "stage": stage.name,
        "spec": spec.model_dump(mode="json"),
        "inputs": {role: variant.digest for role, variant in inputs.items()},
        "data": data.fingerprint if data else None,
        "extra": extra,
        "source": closure_hash(stage.entry.partition(":")[0]),
        "libraries": {name: importlib.metadata.version(name) for name in stage.libraries},
    }
    if stage.seed_matters:
        parts["seed"] = job.seed
    if stage.device_matters:
        parts["device"] = job.device
    if stage.workload_matters:
        module = job.workload.path.partition(":")[0]
        parts["workload"] = {
            "path": job.workload.path,
            "arguments": job.workload.arguments,
            "source": closure_hash(module, job.workload.folder),
        }
    if stage.cpu_class_matters:
        parts["cpu_class"] = cpu_class()
        parts["sums_saturate"] = sums_saturate(cpu_class())  # decided there, outside the sources that are hashed
    if stage.machine_matters:
        parts["machine"] = {"host": socket.gethostname(), "cpu_class": cpu_class(), "cores": os.cpu_count()}
    canonical: dict[str, Any] = json.loads(canonical_json(parts))  # tuples to lists, as they will be read back
    return canonical


def log_folder(run_id: str) -> Path:
    """Where a run's stage logs lie."""
    return Path(os.environ.get("WINNOW_HOME", ".winnow")).absolute() / "runs" / run_id


def _find(store: Store, key: str) -> tuple[StageRecord | None, str]:
    """The record if it and all its files are whole, else None and why it cannot be used ('' = there is none)."""
    data = store.read_record(f"stages/{key}.json")
    if data is None:
        return None, ""
    try:
        record = StageRecord.model_validate_json(data)
    except ValidationError as error:
        return None, f"its record cannot be read ({error.error_count()} errors)"
    entries = [*record.files, *(entry for variant in record.variants for entry in variant.files)]
    if not entries:
        return record, ""
    with ThreadPoolExecutor(max_workers=8) as pool:
        missing = [e.path for e, there in zip(entries, pool.map(store.has_blob, entries), strict=True) if not there]
    return (None, f"missing or corrupt in the store: {', '.join(missing)}") if missing else (record, "")


def _compute(
    stage: Stage,
    name: str,
    key: str,
    job: Job,
    spec: BaseModel,
    data: DataRef | None,
    inputs: dict[str, Variant],
    extra: dict[str, Any],
) -> dict[str, Any]:
    folder = log_folder(job.run_id)
    folder.mkdir(parents=True, exist_ok=True)
    workdir = Path(tempfile.mkdtemp(prefix=f"winnow-{stage.name}-"))
    prewarm_if_kept(stage.warms)
    on_progress: Progress = lambda fraction, text: _tell(name, fraction, text)  # noqa: E731
    try:
        return run_child(
            {
                "entry": stage.entry,
                "job": job.model_dump(mode="json"),
                "spec": spec.model_dump(mode="json"),
                "data": data.model_dump(mode="json") if data else None,
                "inputs": {k: v.model_dump(mode="json", by_alias=True) for k, v in inputs.items()},
                "extra": extra,
                "key": key,
                "workdir": str(workdir),
            },
            name=stage.name,
            limits=job.limits_of(stage.name),
            log_path=folder / f"{name.replace(':', '-')}.log",
            pool=stage.pool,
            code=closure_hash(job.workload.path.partition(":")[0], job.workload.folder),
            threads=stage.threads or job.threads,
            on_progress=on_progress,
        )
    finally:
        shutil.rmtree(workdir, ignore_errors=True)


def _plan(
    plan: Plan,
    stage: Stage,
    name: str,
    key: str,
    parts: dict[str, Any],
    record: StageRecord | None,
    broken: str,
    inputs: dict[str, Variant],
    latest: bytes | None,
    outcome: Callable[..., Outcome],
) -> Outcome:
    if record is not None:
        plan.lines.append(PlanLine(name=name, action="reused", reason=f"made by run {record.run_id}"))
        return outcome(record, computed=False, reason="")
    new = [role for role, variant in inputs.items() if variant.digest in plan.pending]
    reason = f"its {', '.join(new)} will be new" if new else broken or _difference(latest, parts)
    plan.lines.append(PlanLine(name=name, action="computed", reason=reason))
    placeholders = tuple(
        Variant(
            name=label,
            stage=stage.name,
            format="torch",
            files=(FileEntry(path=f"{name}/{label}", sha256=key, size=0),),
            inputs=(),
            outputs=(),
        )
        for label in stage.yields
    )
    plan.pending.update(v.digest for v in placeholders)
    return outcome(
        StageRecord(
            key=key,
            stage=stage.name,
            name=name,
            version="",
            ingredients={},
            variants=placeholders,
            values={},
            files=(),
            compute_seconds=0.0,
            run_id="",
            host="",
        ),
        computed=True,
        reason=reason,
    )


def _difference(latest: bytes | None, parts: dict[str, Any]) -> str:
    """What differs from the ingredients of the last result of this stage of this model."""
    try:
        old, new = _flat(json.loads(latest or b"null")), _flat(parts)
    except ValueError:  # damaged: it is for people only, and written anew with this result
        latest = None
    if latest is None:
        return "first time"
    changes = [
        f"{path} {old.get(path, 'nothing')} -> {new.get(path, 'nothing')}"
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path)
    ]
    return "changed: " + ", ".join(changes) if changes else "its stored result is gone"


def _flat(value: Any, path: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{path}.{key}" if path else key).items()}
    text = str(value)
    return {path: text[:12] if len(text) == 64 else text}


def _tell(name: str, fraction: float, text: str) -> None:
    told = listener.get()
    if told is not None:
        told(name, fraction, text)
