"""Made-up but plausible measurements and reports, for the tests that need no model."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

from model_registry.manifest import FileEntry, hash_bytes
from model_registry.measurement import (
    Hardware,
    LatencyIntervals,
    Measurement,
    MetricEstimate,
    PairedComparison,
    Speedup,
    Throughput,
)
from tasks.evidence.decision import Decision, GateResult, Scored
from tasks.evidence.proportion import loss_bound, mcnemar_p, paired_interval, wilson
from tasks.report.run_report import RunError, RunReport, StageLine, Status, describe_variants

HARDWARE = Hardware(
    cpu="AMD EPYC 7763", cores=2, cpu_class="x86-64/avx2", memory_bytes=8 << 30, python="3.11.7", onnxruntime="1.31.1"
)
SAMPLES = 360


def measured(
    name: str,
    baseline: Measurement | None = None,
    *,
    p50: float = 1.0,
    right: int = 350,
    flips: tuple[int, int] = (0, 0),
    stage: str = "export",
    **fields: Any,
) -> Measurement:
    """A measurement on 360 validation samples; ``right`` answers, ``flips`` (better, worse) against the baseline."""
    digest = fields.get("digest") or hashlib.sha256(name.encode()).hexdigest()
    up, down = flips
    share = right / SAMPLES
    values: dict[str, Any] = {
        "digest": digest,
        "baseline": baseline.digest if baseline else digest,
        "name": name,
        "stage": stage,
        "split": "validation",
        "samples": SAMPLES,
        "data": "d" * 64,
        "hardware": HARDWARE,
        "threads": 1,
        "batch": 1,
        "metric": MetricEstimate(name="accuracy", better="higher", value=share, interval=wilson(right, SAMPLES)),
        "accuracy": share,
        "per_class": {
            str(c): MetricEstimate(
                name="accuracy", better="higher", value=share, interval=wilson(right // 10, SAMPLES // 10)
            )
            for c in range(10)
        },
        "p50_ms": p50,
        "p95_ms": p50 * 1.3,
        "latency_interval": LatencyIntervals(p50=(p50 * 0.96, p50 * 1.05), p95=(p50 * 1.2, p50 * 1.5)),
        "throughput": Throughput(value=1000 / p50, interval=(930 / p50, 1040 / p50)),
        "peak_rss_bytes": 60 << 20,
        "cpu_seconds": p50,
        "bytes": 100_000,
        "parameters": 24_000,
        "macs": 1_000_000,
        "predictions": FileEntry(path="predictions.npz", sha256=hash_bytes(b"p" + name.encode()), size=10),
        "scores": FileEntry(path="scores.npz", sha256=hash_bytes(b"s" + name.encode()), size=10),
    }
    if baseline is not None:
        ratio = baseline.p50_ms / p50
        verdict = "faster" if ratio > 1.1 else "slower" if ratio < 0.9 else "not distinguishable"
        values["speedup"] = Speedup.model_validate(
            {"value": ratio, "interval": (ratio * 0.94, ratio * 1.05), "verdict": verdict}
        )
        values["paired"] = PairedComparison(
            reference=baseline.digest,
            samples=SAMPLES,
            better=up,
            worse=down,
            better_indices=tuple(range(up)),
            worse_indices=tuple(range(100, 100 + down)),
            difference=(up - down) / SAMPLES,
            interval=paired_interval(up, down, SAMPLES),
            bound=loss_bound(up, down, SAMPLES),
            p=mcnemar_p(up, down),
            test="mcnemar",
        )
    return Measurement(**(values | fields))


def digits_measurements() -> list[Measurement]:
    """What a run on digits looks like: the baseline first."""
    teacher = measured("teacher.fp32", p50=0.046, right=354, bytes=402_113, parameters=98_000, macs=1_230_000)
    rows = [
        ("student.fp32", "export", 0.021, 351, (2, 5), 76_204, 18_600, 61 << 20),
        ("control.fp32", "export", 0.021, 347, (3, 10), 76_204, 18_600, 61 << 20),
        ("pruned.fp32", "export", 0.015, 349, (3, 8), 27_890, 6_700, 59 << 20),
        ("teacher.int8-static", "quantize", 0.024, 353, (1, 2), 108_800, 98_000, 60 << 20),
        ("teacher.int8-dynamic", "quantize", 0.061, 354, (0, 0), 104_020, 98_000, 62 << 20),
        ("student.int8-static", "quantize", 0.014, 350, (2, 6), 24_310, 18_600, 58 << 20),
        ("student.int8-dynamic", "quantize", 0.033, 351, (2, 5), 22_950, 18_600, 60 << 20),
        ("pruned.int8-static", "quantize", 0.0105, 348, (3, 9), 11_870, 6_700, 57 << 20),
        ("pruned.int8-dynamic", "quantize", 0.028, 349, (3, 8), 11_020, 6_700, 59 << 20),
    ]
    made = [
        measured(
            name, teacher, stage=stage, p50=p50, right=right, flips=flips, bytes=size, parameters=parameters,
            peak_rss_bytes=rss, macs=parameters * 12,
        )
        for name, stage, p50, right, flips, size, parameters, rss in rows
    ]  # fmt: skip
    return [teacher, *made]


def decided(variant: Measurement, baseline: Measurement, *, passed: bool = True) -> Decision:
    """A decision on 359 test samples."""
    paired = PairedComparison(
        reference=baseline.digest, samples=359, better=2, worse=3, difference=-1 / 359, interval=(-0.02, 0.014),
        bound=0.0139 if passed else 0.0391, p=1.0, test="mcnemar",
    )  # fmt: skip
    classes = {m.digest: dict(m.per_class) for m in (variant, baseline)}
    classes[variant.digest]["8"] = MetricEstimate(name="accuracy", better="higher", value=0.93, interval=(0.8, 0.98))
    classes[variant.digest]["3"] = MetricEstimate(name="accuracy", better="higher", value=1.0, interval=(0.9, 1.0))
    scored = tuple(
        Scored(
            digest=m.digest, name=m.name, role=role, metric=m.metric, per_class=classes[m.digest],
            to_baseline=paired if role == "chosen" else None,
        )
        for role, m in (("chosen", variant), ("baseline", baseline))
    )  # fmt: skip
    meaning = "95 % bound of the loss of accuracy against the baseline, same 359 samples"
    gates = (
        GateResult(
            gate="non_inferior_to_baseline", meaning=meaning, value=paired.bound, limit=0.02, unit="loss", passed=passed
        ),
        GateResult(gate="per_class", meaning="largest loss (8)", value=0.042, limit=0.1, unit="loss", passed=True),
        GateResult(gate="size", meaning="bytes", value=variant.bytes, limit=200_000, unit="bytes", passed=True),
        GateResult(
            gate="faster", meaning="speed-up over the baseline, lower end of the 95 % interval", value=0.97,
            limit=1.0, unit="ratio", at_most=False, severity="warning", passed=False,
        ),
    )  # fmt: skip
    return Decision(
        status="passed" if passed else "refused",
        chosen=variant.digest,
        baseline=baseline.digest,
        champion=None,
        reason=f"7 of 9 variants pass on validation; {variant.name} is the fastest (p50 {variant.p50_ms} ms)",
        samples=359,
        scored=scored,
        gates=gates,
    )


def run_report(status: Status = "released", **fields: Any) -> RunReport:
    """A report of a run on digits that ended this way."""
    measurements = digits_measurements()
    chosen = next(m for m in measurements if m.name == "pruned.int8-static")
    stages = (
        ("data", "computed", 6.1), ("train", "computed", 21.4), ("distill", "computed", 17.9),
        ("prune", "computed", 12.2), ("export:teacher", "computed", 7.3), ("quantize:teacher", "reused", 0.1),
        ("measure:teacher", "computed", 4.4), ("validate", "computed", 5.2), ("register", "computed", 1.9),
    )  # fmt: skip
    values: dict[str, Any] = {
        "run_id": "20261122-120455-digits-3f9a",
        "status": status,
        "model": "digits",
        "stages": tuple(StageLine.model_validate({"name": n, "status": s, "seconds": t}) for n, s, t in stages),
        "started": datetime(2026, 11, 22, 12, 4, 55, tzinfo=UTC),
        "seconds": 148.2,
        "git_commit": "1851539c0ffee",
        "spec": {"model": "digits", "gates": {"margin": 0.02}},
        "links": {"prefect": "http://127.0.0.1:4200/runs/flow-run/1", "mlflow": "http://127.0.0.1:5000/#/1"},
    }
    if status not in ("failed", "crashed", "interrupted", "running"):
        parents = {m.digest: (measurements[0].digest,) for m in measurements[1:]}
        values |= describe_variants(measurements, parents) | {
            "chosen": chosen.digest,
            "decision": decided(chosen, measurements[0], passed=status != "refused"),
            "notes": ("Distillation gained 1.1 points over the same student trained without the teacher.",),
            "warnings": ("duplicates: train: 2 rows occur twice",),
        }
    if status == "released":
        url = "http://127.0.0.1:8600/v2/models/digits"
        values |= {"version": 3, "endpoint": url, "curl": f"curl -s {url}/infer -d '{{\"inputs\": []}}'"}
    if status in ("refused", "failed"):
        values["error"] = RunError(
            stage="validate" if status == "refused" else "prune",
            type="GateFailed" if status == "refused" else "StageOutOfMemory",
            message="pruned.int8-static is refused on the test split (359 samples):\n  FAIL  non_inferior_to_baseline"
            if status == "refused"
            else "stage prune grew to 2.15 GB, past its limit of 1.07 GB, and was ended",
            log=".winnow/runs/20261122-120455-digits-3f9a/prune.log",
            resume="winnow run digits",
        )
    return RunReport(**(values | fields))
