"""A variant beside the baseline, in two ratios as people read them: how much smaller, how much faster."""

from __future__ import annotations

from tasks.evidence.number_text import times_text
from tasks.report.run_report import VariantRow


def smaller_text(row: VariantRow, baseline: VariantRow | None) -> str:
    """``34.2×``; a dash for the baseline itself."""
    return "–" if baseline is None or row.digest == baseline.digest else times_text(baseline.bytes / row.bytes)


def faster_text(row: VariantRow) -> str:
    """``7.33×`` from interleaved rounds, ``≈ 1×`` within the noise; a dash where nothing was compared."""
    if row.speedup is None:
        return "–"
    return "≈ 1×" if row.speedup.verdict == "not distinguishable" else f"{row.speedup.value:.2f}×"
