"""Candidates for the report: their numbers, what became of each, and why."""

from __future__ import annotations

from flows.candidate import Candidate, loss_of
from flows.candidates import Workshop
from flows.spec import PipelineSpec
from tasks.evidence.search_summary import CandidateForm, CandidateRow, State
from tasks.gate_checks.choice import failing_gates


def row_of(candidate: Candidate, shop: Workshop, spec: PipelineSpec) -> CandidateRow:
    """The candidate for the report."""
    forms = tuple(
        CandidateForm(
            name=m.name,
            digest=m.digest,
            bytes=m.bytes,
            p50_ms=m.p50_ms,
            p95_ms=m.p95_ms,
            metric=m.metric.value,
            loss=loss_of(m),
            bound=m.paired.bound if m.paired else 0.0,
            speedup=m.speedup.value if m.speedup else None,
            cpu_seconds=m.cpu_seconds,
            fails=tuple(g.gate for g in failing_gates(spec.gates, m, shop.baseline_measurement)),
        )
        for m in candidate.forms
    )
    state, reason = _state(candidate, forms, shop)
    return CandidateRow(
        name=candidate.name,
        kind=candidate.kind,
        what=candidate.what,
        settings=candidate.settings,
        state=state,
        reason=reason,
        rung=candidate.rung,
        rungs=candidate.last,
        losses=tuple(candidate.losses),
        cost=min((shop.cost(m) for m in candidate.forms), default=0.0),
        seconds=candidate.seconds,
        forms=forms,
    )


def _state(candidate: Candidate, forms: tuple[CandidateForm, ...], shop: Workshop) -> tuple[State, str]:
    if candidate.failure:
        return "failed", candidate.failure
    over = [shop.over_budget(m) for m in candidate.forms]
    if over and all(over):
        nearest = min(over, key=len)
        return "over the budget", "; ".join(nearest)
    trained = bool(candidate.losses) or candidate.kind == "teacher"
    passing = [f for f in forms if not f.fails and f.loss is not None] if trained else []
    if [f for f in passing if f.digest != shop.baseline_measurement.digest]:
        return "keeps the budget", f"{passing[-1].name} fails no gate"
    if not trained:
        return "not reached", "a dearer candidate lost too much already, or the search ended before"
    margin = shop.spec.gates.margin
    bound = min(f.bound for f in forms if f.digest != shop.baseline_measurement.digest)
    reason = f"95 % bound of the loss {bound:.4f} > {margin:g}"
    if candidate.rung < candidate.last:
        return "given up", f"{reason} after {candidate.rung} of {candidate.last} trainings"
    return "loses too much", reason
