"""The comparison as a table in Markdown."""

from __future__ import annotations

from typing import Any

from tasks.evidence.number_text import gate_number, points

_HEAD = (
    "file", "bytes", "stripped", "p50 ms", "p95 ms", "speed-up (95 %)", "metric", "loss", "bound", "seconds",
)  # fmt: skip


def table(files: dict[str, Any], *, head: bool = True) -> str:
    """A row per file. ``loss``: of the metric against fp32; ``bound``: at most this, with 95 % confidence."""
    rows = [[name, *_cells(facts)] for name, facts in files.items()]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(_HEAD)} |", "|---" * len(_HEAD) + "|", *lines] if head else lines)


def _cells(facts: dict[str, Any]) -> list[str]:
    if "failed" in facts:
        return [facts["failed"].replace("|", "/").replace("\n", " "), *[""] * (len(_HEAD) - 2)]
    speedup, paired, metric = facts["speedup"], facts.get("against_fp32"), facts["metric"]
    return [
        f"{facts['bytes']:,}",
        f"{facts['stripped']:,}",
        f"{facts['p50_ms']:.3f}",
        f"{facts['p95_ms']:.3f}",
        "{:.2f} ({:.2f}-{:.2f})".format(speedup["value"], *speedup["interval"]) if speedup else "",
        gate_number(metric["value"], "metric", metric["name"]),
        points(0.0 - paired["difference"], metric["name"]) if paired else "",
        points(paired["bound"], metric["name"]) if paired else "",
        f"{facts['seconds']:.0f}" if "seconds" in facts else "",
    ]
