"""Searches as stored: what was measured once answers another budget in seconds, without training."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from flows.lineage import CONTROL, Made, MadeStep
from flows.searching.budget_spec import SearchSpec
from flows.spec import PipelineSpec
from model_registry.manifest import canonical_json, hash_bytes
from model_registry.store import CorruptObject, Store
from model_registry.variant import Frozen, Record, Variant
from tasks.evidence.search_summary import SearchSummary
from tasks.running.source_hash import closure_hash, closure_libraries
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Outcome

_SEARCHED = {"students", "shrink", "rungs", "eta", "qat", "train_teacher"}
"""The parts of ``search`` that say what is tried; the others say how long."""


class StoredStep(Frozen):
    """One step of the search and the variants it was made from."""

    outcome: Outcome
    parents: tuple[Variant, ...]
    controls: tuple[str, ...] | None = None
    """As in MadeStep; None in records of before, where what the search called the training tells."""

    def made(self) -> MadeStep:
        """The same as it was, its outcome reused."""
        controls = self.controls
        if controls is None:
            asked = self.outcome.stage == "distill" and self.outcome.name.startswith(f"distill:{CONTROL}-")
            controls = tuple(v.digest for v in self.outcome.variants) if asked else ()
        return MadeStep(_reused(self.outcome), self.parents, controls)


class SearchRecord(Record):
    """``searches/<key>.json``: the whole search."""

    key: str
    run_id: str
    steps: tuple[StoredStep, ...]
    measured: tuple[Outcome, ...]
    summary: SearchSummary
    minutes: float
    trials: int

    @classmethod
    def of(cls, key: str, job: Job, made: Made, summary: SearchSummary, settings: SearchSpec) -> SearchRecord:
        """The record of what a search made, and of the limits that it had."""
        steps = tuple(StoredStep(outcome=s.outcome, parents=s.parents, controls=s.controls) for s in made.steps)
        return cls(
            key=key,
            run_id=job.run_id,
            steps=steps,
            measured=made.measured,
            summary=summary,
            minutes=settings.minutes,
            trials=settings.trials,
        )

    def may_go_on(self, settings: SearchSpec) -> bool:
        """Whether it ended at a limit that is higher now: then its answer is not the last word."""
        return self.summary.limited and (settings.trials > self.trials or settings.minutes > self.minutes)

    def made(self, data: Outcome, checked: DataRef) -> Made:
        """The same as it was when the search ended, every outcome reused."""
        return Made(data, checked, tuple(step.made() for step in self.steps), tuple(map(_reused, self.measured)))


def search_key(job: Job, spec: PipelineSpec, data: DataRef, teacher: Variant) -> str:
    """Identity of a search: everything but the budget, the objective and the time it may take. Of
    machines it is theirs that the spec names: what is measured elsewhere is another search's."""
    assert spec.search is not None
    parts: dict[str, Any] = {
        "workload": job.workload.model_dump(mode="json", exclude={"folder"}),
        "source": closure_hash(job.workload.path.partition(":")[0], job.workload.folder),
        "libraries": closure_libraries(job.workload.path.partition(":")[0], job.workload.folder),
        "data": data.fingerprint,
        "teacher": teacher.digest,
        "seed": job.seed,
        "search": spec.search.model_dump(mode="json", include=_SEARCHED),
        "measure": spec.measure.model_dump(mode="json"),
        "export": spec.export.model_dump(mode="json"),
    }
    if job.measure_on is not None:
        parts["machines"] = job.measure_on
    for name in ("distill", "prune", "quantize", "qat"):
        part = getattr(spec, name)
        parts[name] = part.model_dump(mode="json") if part else None
    return hash_bytes(canonical_json(parts))


def remember(store: Store, record: SearchRecord) -> None:
    """Store the search under its key, over an earlier one of the same key."""
    store.write_record(f"searches/{record.key}.json", record.to_json())


def recall(store: Store, key: str) -> SearchRecord | None:
    """The search stored under the key, if it can be read and every file of a measured variant is still there."""
    try:
        data = store.read_record(f"searches/{key}.json")
        record = SearchRecord.from_json(data) if data is not None else None
    except (ValidationError, CorruptObject):  # of an older version, or damaged: search again, which overwrites it
        return None
    if record is None:
        return None
    files = [f for outcome in record.measured for v in outcome.variants for f in (*v.files, *outcome.files)]
    return record if all(store.has_blob(f) for f in files) else None


def _reused(outcome: Outcome) -> Outcome:
    return outcome.model_copy(update={"status": "reused", "seconds": 0.0, "compute_seconds": 0.0, "host": ""})
