"""What a run was asked to keep, as limits that plots, tables and sentences show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from model_registry.sizes import size_text
from tasks.evidence.number_text import count_text, ms_text, points, share_of_baseline
from tasks.evidence.search_summary import NO_CIRCUIT, CandidateForm
from tasks.report.run_report import RunReport


@dataclass(frozen=True)
class BudgetLimits:
    """None: not limited. ``margin`` is a loss of the metric, in its own unit, ``share`` of the baseline's metric where
    that was said; ``speedup``, ``shrink`` and ``tokens_per_second`` are minima."""

    margin: float | None
    p95_ms: float | None
    bytes: float | None
    speedup: float | None = None
    shrink: float | None = None
    share: float | None = None
    tokens_per_second: float | None = None
    ttft_ms: float | None = None
    luts: float | None = None

    def text(self, metric: str) -> str:
        """All of them in words; '' without any."""
        parts = [
            f"{self._loss(metric)} lost" if self.margin is not None else "",
            f"p95 at most {ms_text(self.p95_ms)} ms" if self.p95_ms is not None else "",
            f"file at most {size_text(self.bytes)}" if self.bytes is not None else "",
            f"at least {self.speedup:g}× as fast" if self.speedup is not None else "",
            f"file at least {self.shrink:g}× smaller" if self.shrink is not None else "",
            f"at least {self.tokens_per_second:g} tokens/s" if self.tokens_per_second is not None else "",
            f"first token within {ms_text(self.ttft_ms)} ms" if self.ttft_ms is not None else "",
            f"at most {count_text(self.luts)} LUTs" if self.luts is not None else "",
        ]
        return ", ".join(part for part in parts if part)

    def _loss(self, metric: str) -> str:
        most = points(self.margin or 0.0, metric)
        if self.share is None:
            return f"at most {most} of {metric}"
        return f"at most {share_of_baseline(self.share)} ({most} of {metric})"

    def excess(self, form: CandidateForm, *, trained: bool = True) -> float:
        """By how much the form exceeds the worst of the limits, relative to it; at most 0 where it keeps them all.

        Args:
            trained: false where the form's loss says nothing yet.
        """
        shares = [
            form.bound / self.margin - 1 if self.margin and trained and form.bound is not None else None,
            form.p95_ms / self.p95_ms - 1 if self.p95_ms else None,
            form.bytes / self.bytes - 1 if self.bytes else None,
            self.speedup / form.speedup_low - 1 if self.speedup and form.speedup_low else None,
            self.shrink / form.shrink - 1 if self.shrink and form.shrink else None,
            (math.inf if form.luts is None else form.luts / self.luts - 1) if self.luts else None,
        ]
        return max((s for s in shares if s is not None), default=0.0)

    def exceeded(self, form: CandidateForm, metric: str) -> list[str]:
        """What the form exceeds, in words."""
        parts = []
        if self.margin is not None and form.bound is not None and form.bound > self.margin:
            parts.append(
                f"it may lose {points(form.bound, metric)} of {metric} (95 % bound) where "
                f"{points(self.margin, metric)} are allowed"
            )
        if self.p95_ms is not None and form.p95_ms > self.p95_ms:
            parts.append(f"its p95 is {ms_text(form.p95_ms)} ms where {ms_text(self.p95_ms)} ms are allowed")
        if self.bytes is not None and form.bytes > self.bytes:
            parts.append(f"its file has {size_text(form.bytes)} where {size_text(self.bytes)} are allowed")
        if self.speedup is not None and form.speedup_low is not None and form.speedup_low < self.speedup:
            sure = f"{form.speedup_low:.2f}× as fast as the baseline (95 % bound)"
            parts.append(f"it is {sure} where {self.speedup:g}× are asked")
        if self.shrink is not None and form.shrink is not None and form.shrink < self.shrink:
            parts.append(f"its file is {form.shrink:.2f}× smaller than the baseline's where {self.shrink:g}× are asked")
        if self.luts is not None and form.luts is None:
            parts.append(NO_CIRCUIT)
        elif self.luts is not None and form.luts is not None and form.luts > self.luts:
            parts.append(f"it takes {count_text(form.luts)} LUTs where {count_text(self.luts)} are allowed")
        return parts


def limits_of(report: RunReport) -> BudgetLimits:
    """The limits of the run: those of its budget, else those of its gates; relative ones as they are on validation."""
    gates = report.spec.get("gates")
    gates = gates if isinstance(gates, dict) else {}
    budget = report.search.budget if report.search else {}
    share, baseline = (
        _number(budget.get("max_relative_drop"), gates.get("relative_margin")),
        report.row(report.baseline),
    )
    drop = next((budget[key] for key in ("max_accuracy_drop", "max_nats_increase") if budget.get(key)), None)
    margin = _number(drop, gates.get("margin"))
    if share is not None:
        margin = share * abs(baseline.metric.value) if baseline else None
    return BudgetLimits(
        margin=margin,
        p95_ms=_number(budget.get("p95_ms"), gates.get("max_p95_ms")),
        bytes=_number(budget.get("max_bytes"), gates.get("max_bytes")),
        speedup=_number(budget.get("min_speedup"), gates.get("min_speedup")),
        shrink=_number(budget.get("min_shrink"), gates.get("min_shrink")),
        share=share,
        tokens_per_second=_number(budget.get("min_tokens_per_second"), gates.get("min_tokens_per_second")),
        ttft_ms=_number(budget.get("max_ttft_ms"), gates.get("max_ttft_ms")),
        luts=_number(budget.get("max_luts"), gates.get("max_luts")),
    )


def _number(*values: Any) -> float | None:
    return next((float(v) for v in values if isinstance(v, int | float) and v > 0), None)
