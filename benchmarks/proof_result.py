"""What a run came to, taken from its report: the baseline and the chosen variant, side by side."""

from __future__ import annotations

from model_registry.measurement import Interval, PairedComparison, Speedup
from model_registry.variant import Frozen
from tasks.evidence.decision import Scored
from tasks.evidence.number_text import gate_number, ms_range, ms_text, points
from tasks.report.run_report import RunReport, VariantRow

SIGNIFICANT = 0.05
_HEAD = (
    "row", "variant", "bytes", "smaller", "p50 ms (95 %)", "faster (95 %)", "verdict", "on the test split",
    "loss (95 % bound)", "paired p", "goals",
)  # fmt: skip


class NothingMeasured(RuntimeError):
    """A run ended before its baseline was measured: there is nothing to judge."""


class Side(Frozen):
    """One of the two files. ``metric``: on the test split; None where the gates had nothing to look at."""

    name: str
    digest: str
    bytes: int
    p50_ms: float
    p50_interval: Interval
    metric: float | None = None
    metric_interval: Interval | None = None


class Loss(Frozen):
    """What the chosen variant loses against the baseline on the same test samples, in the metric's unit."""

    value: float
    """Negative: it is better than the baseline."""
    interval: Interval
    bound: float
    """One-sided 95 % bound."""
    p: float
    """Two-sided, paired."""
    samples: int
    better: int
    worse: int
    significant: bool
    """It is worse, and p is below 0.05."""


class Result(Frozen):
    """The run in numbers; ``chosen`` is None where there is no variant but the baseline to speak of."""

    status: str
    metric: str
    batch: int
    threads: int
    baseline: Side
    chosen: Side | None = None
    smaller: float | None = None
    """Bytes of the baseline's file divided by those of the chosen one."""
    speedup: Speedup | None = None
    """From rounds interleaved with the baseline's; not the ratio of the two medians above."""
    loss: Loss | None = None
    failed_gates: tuple[str, ...] = ()
    reason: str = ""
    """Why this variant was chosen, on validation."""


def result_of(report: RunReport) -> Result:
    """The numbers of a run that measured at least its baseline.

    Raises:
        NothingMeasured: it did not come so far.
    """
    baseline, chosen, conditions = report.row(report.baseline), report.row(report.chosen), report.conditions
    if baseline is None or conditions is None or report.metric is None:
        why = f": {report.error.message}" if report.error else ""
        raise NothingMeasured(f"run {report.run_id} measured nothing{why}")
    decision = report.decision
    scored = {s.role: s for s in decision.scored} if decision else {}
    result = Result(
        status=report.status,
        metric=report.metric.name,
        batch=conditions.batch,
        threads=conditions.threads,
        baseline=_side(baseline, scored.get("baseline")),
        failed_gates=_failed_gates(report),
        reason=decision.reason if decision else "",
    )
    if chosen is None or chosen.digest == baseline.digest:
        return result
    tested = scored.get("chosen")
    return result.model_copy(
        update={
            "chosen": _side(chosen, tested),
            "smaller": baseline.bytes / chosen.bytes,
            "speedup": chosen.speedup,
            "loss": _loss(tested.to_baseline) if tested and tested.to_baseline else None,
        }
    )


def result_table(row: str, result: Result, goals: str, *, head: bool = True) -> str:
    """One line in Markdown, the baseline left of each arrow; ``goals``: how many were reached, in words."""
    line = f"| {' | '.join([row, *_cells(result), goals])} |"
    return "\n".join([f"| {' | '.join(_HEAD)} |", "|---" * len(_HEAD) + "|", line] if head else [line])


def speedup_text(speedup: Speedup) -> str:
    """``10.3× (10.1 – 10.5)``."""
    low, high = speedup.interval
    return f"{speedup.value:.2f}× ({low:.2f} – {high:.2f})"


def _cells(result: Result) -> list[str]:
    before, after, loss = result.baseline, result.chosen, result.loss
    if after is None:
        return [f"{before.name}, nothing else", f"{before.bytes:,}", "–", _median(before), "–", "–", "–", "–", "–"]
    return [
        after.name,
        f"{before.bytes:,} → {after.bytes:,}",
        f"{result.smaller:.1f}×",
        f"{_median(before)} → {_median(after)}",
        speedup_text(result.speedup) if result.speedup else "–",
        result.speedup.verdict if result.speedup else "–",
        f"{_metric(before, result)} → {_metric(after, result)}",
        f"{points(loss.value, result.metric)} ({points(loss.bound, result.metric)})" if loss else "–",
        f"{loss.p:.2g}, {'significantly worse' if loss.significant else 'no significant loss'}" if loss else "–",
    ]


def _median(side: Side) -> str:
    return f"{ms_text(side.p50_ms)} ({ms_range(side.p50_interval)})"


def _metric(side: Side, result: Result) -> str:
    return "–" if side.metric is None else gate_number(side.metric, "metric", result.metric)


def _side(row: VariantRow, scored: Scored | None) -> Side:
    return Side(
        name=row.name,
        digest=row.digest,
        bytes=row.bytes,
        p50_ms=row.p50_ms,
        p50_interval=row.latency_interval.p50,
        metric=scored.metric.value if scored else None,
        metric_interval=scored.metric.interval if scored else None,
    )


def _loss(paired: PairedComparison) -> Loss:
    low, high = paired.interval
    return Loss(
        value=0.0 - paired.difference,  # never -0.0
        interval=(-high, -low),
        bound=paired.bound,
        p=paired.p,
        samples=paired.samples,
        better=paired.better,
        worse=paired.worse,
        significant=paired.difference < 0 and paired.p < SIGNIFICANT,
    )


def _failed_gates(report: RunReport) -> tuple[str, ...]:
    """Critical gates that refused; the error itself where they had nothing to look at."""
    gates = report.decision.gates if report.decision else ()
    failed = tuple(g.gate for g in gates if not g.passed and g.severity == "critical")
    if failed or report.status in ("released", "registered"):
        return failed
    return (report.error.type if report.error else report.status,)
