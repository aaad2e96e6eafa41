"""What it costs to serve the chosen variant, beside the baseline."""

from __future__ import annotations

from dataclasses import dataclass

from model_registry.measurement import CPU_SECONDS_SAMPLES
from model_registry.sizes import size_text
from tasks.evidence.number_text import count_text, ms_text, times_text
from tasks.report.run_report import RunReport


@dataclass(frozen=True)
class CostRow:
    """``change``: how many times less, in words."""

    what: str
    baseline: str
    chosen: str
    change: str


def cost_rows(report: RunReport) -> list[CostRow]:
    """File, memory, processor time and latency; empty where nothing but the baseline was chosen."""
    chosen, baseline = report.row(report.chosen), report.row(report.baseline)
    if chosen is None or baseline is None or chosen.digest == baseline.digest:
        return []
    rows = [
        CostRow(
            "file",
            size_text(baseline.bytes),
            size_text(chosen.bytes),
            _less(baseline.bytes, chosen.bytes, "smaller", "larger"),
        ),
        CostRow(
            "resident memory of a process that serves it, at its peak",
            size_text(baseline.peak_rss_bytes),
            size_text(chosen.peak_rss_bytes),
            _less(baseline.peak_rss_bytes, chosen.peak_rss_bytes),
        ),
    ]
    if baseline.cpu_seconds > 0 and chosen.cpu_seconds > 0:
        measure = report.spec.get("measure")
        batch = measure.get("predict_batch", 1) if isinstance(measure, dict) else 1
        together = f", {batch} at a time" if batch != 1 else ""
        before, after = (1000 * v.cpu_seconds for v in (baseline, chosen))
        rows.append(
            CostRow(
                f"processor time of {CPU_SECONDS_SAMPLES} requests of one sample{together}",
                f"{ms_text(before)} ms",
                f"{ms_text(after)} ms",
                _less(before, after),
            )
        )
        rows.append(
            CostRow(
                "samples per second that one core can answer",
                count_text(CPU_SECONDS_SAMPLES / baseline.cpu_seconds),
                count_text(CPU_SECONDS_SAMPLES / chosen.cpu_seconds),
                _less(before, after, "more", "fewer"),
            )
        )
    for name, low, high in (
        ("median", baseline.p50_ms, chosen.p50_ms),
        ("95th percentile", baseline.p95_ms, chosen.p95_ms),
    ):
        rows.append(CostRow(f"latency, {name}", f"{ms_text(low)} ms", f"{ms_text(high)} ms", _less(low, high)))
    return rows


def _less(before: float, after: float, less: str = "less", more: str = "more") -> str:
    if before <= 0 or after <= 0:
        return "–"
    ratio, word = (before / after, less) if after <= before else (after / before, more)
    return f"{times_text(ratio)} {word}" if ratio >= 1.05 else "about the same"
