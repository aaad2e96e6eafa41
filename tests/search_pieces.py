"""Pieces of a search, made up: candidates, their files and what they cost."""

from __future__ import annotations

from typing import Any

from measurements import measured

from flows.searching.appraisal import Appraisal
from flows.searching.candidate import Candidate
from flows.searching.search_setup import SearchSetup
from flows.searching.training_plan import TrainingPlan
from flows.spec import PipelineSpec
from model_registry.manifest import FileEntry
from model_registry.measurement import Clocked, Measurement
from model_registry.variant import Variant
from tasks.running.splits import DataRef, MetricRef, SplitRef
from tasks.running.stage import Job, Outcome, WorkloadRef

BASELINE = measured("teacher.fp32", p50=0.4, right=354, bytes=400_000)
WORKLOAD = WorkloadRef(path="tasks.workloads.digits:Digits")


def outcome(name: str, seconds: float = 0.0) -> Outcome:
    variant = Variant(
        name=name,
        stage="train",
        format="torch",
        files=(FileEntry(path="f", sha256=f"{len(name):064d}", size=1),),
        inputs=(),
        outputs=(),
    )
    return Outcome(
        stage="train", name=name, status="computed", seconds=0, cost_seconds=seconds, key="k", version="v",
        variants=(variant,),
    )  # fmt: skip


def setup(objective: str = "latency", distill: dict[str, Any] | None = None, **search: Any) -> SearchSetup:
    spec = PipelineSpec.model_validate(
        {
            "model": "m",
            "workload": WORKLOAD,
            "objective": objective,
            "budget": {"max_accuracy_drop": 0.03, "max_bytes": 100_000},
            "gates": {"per_class_margin": None},
            "search": search,
            "distill": distill,
        }
    )
    metric = MetricRef(name="accuracy", better="higher", builtin=True)
    file = FileEntry(path="f", sha256="0" * 64, size=1)
    splits = tuple(
        SplitRef(name=name, file=file, rows=rows)
        for name, rows in (("train", 1000), ("validation", 300), ("test", 300))
    )
    data = DataRef(fingerprint="f", splits=splits, columns={}, task="classes", metric=metric)
    job = Job(run_id="r", model="m", store="s3://s", workload=WORKLOAD)
    return SearchSetup.of(job, spec, data, outcome("teacher"), ())


def appraise(objective: str = "latency") -> Appraisal:
    given = setup(objective)
    return Appraisal(given, BASELINE, TrainingPlan(given))


def clocked(name: str, p50: float, size: int = 50_000) -> Clocked:
    form = file(name, p50, (0, 0), size)
    assert form.speedup is not None
    return Clocked(
        digest=form.digest, name=name, bytes=size, batch=1, p50_ms=p50, p95_ms=form.p95_ms, throughput=form.throughput,
        speedup=form.speedup, tail_share=form.p95_ms / BASELINE.p95_ms,
    )  # fmt: skip


def file(name: str, p50: float, flips: tuple[int, int], size: int = 50_000) -> Measurement:
    return measured(name, BASELINE, p50=p50, right=354 + flips[0] - flips[1], flips=flips, bytes=size)


def candidate(*forms: Measurement, trained: bool = True) -> Candidate:
    made = Candidate("pruned40", "pruned", "", {}, 3, forms=forms, rung=int(trained), losses=[0.01] * trained)
    made.int8 = Variant(name="pruned40.int8-static", stage="quantize", format="onnx", files=(), inputs=(), outputs=())
    return made
