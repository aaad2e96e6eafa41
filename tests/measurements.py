"""Made-up but plausible measurements and reports, for the tests that need no model."""

from __future__ import annotations

import hashlib
from typing import Any

from model_registry.manifest import FileEntry, hash_bytes
from model_registry.measurement import (
    Hardware,
    LatencyIntervals,
    Measurement,
    Metric,
    PairedComparison,
    Speedup,
    Throughput,
)
from tasks.evidence.proportion import loss_bound, mcnemar_p, paired_interval, wilson

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
        "metric": Metric(name="accuracy", better="higher", value=share, interval=wilson(right, SAMPLES)),
        "accuracy": share,
        "per_class": {
            str(c): Metric(name="accuracy", better="higher", value=share, interval=wilson(right // 10, SAMPLES // 10))
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
