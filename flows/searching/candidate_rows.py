"""Candidates for the report: their numbers, what became of each under a budget, and why."""

from __future__ import annotations

from flows.searching.candidate import Candidate, loss_of
from model_registry.measurement import Clocked, Measurement, Objective
from tasks.evidence.objective_cost import objective_cost
from tasks.evidence.search_summary import NO_CIRCUIT, CandidateForm, CandidateRow, State
from tasks.validate.choice import failing_gates
from tasks.validate.gate_spec import STRUCTURAL, GateSpec

_OF_FORMS = ("non_inferior_to_baseline", *STRUCTURAL)
"""Gates that can be judged again by a form's own numbers."""


def row_of(candidate: Candidate, gates: GateSpec, baseline: Measurement) -> CandidateRow:
    """The candidate as the search left it."""
    timed = () if candidate.forms else candidate.clocked
    forms = tuple(_timed(m, baseline) for m in timed) + tuple(
        CandidateForm(
            name=m.name,
            digest=m.digest,
            bytes=m.bytes,
            p50_ms=m.p50_ms,
            p95_ms=m.p95_beside(baseline),
            throughput=m.throughput.value,
            metric=m.metric.value,
            loss=loss_of(m),
            bound=m.paired.bound if m.paired else 0.0,
            speedup=m.speedup.value if m.speedup else None,
            speedup_low=m.speedup.interval[0] if m.speedup else None,
            shrink=baseline.bytes / m.bytes,
            luts=m.luts,
            cpu_seconds=m.cpu_seconds,
            fails=tuple(g.gate for g in failing_gates(gates, m, baseline)),
        )
        for m in (*candidate.forms, *candidate.earlier)
        if m.digest != baseline.digest
    )
    row = CandidateRow(
        name=candidate.name,
        kind=candidate.kind,
        what=candidate.what,
        settings=candidate.settings,
        state="failed" if candidate.failure else "not reached",
        reason=candidate.failure,
        rung=candidate.rung,
        rungs=candidate.last,
        losses=tuple(candidate.losses),
        epochs=tuple(candidate.epochs),
        cost=0.0,
        seconds=candidate.seconds,
        forms=forms,
        planned_bytes=candidate.planned_bytes,
        behind=candidate.behind,
    )
    return judged(row, gates)


def _timed(found: Clocked, baseline: Measurement) -> CandidateForm:
    return CandidateForm(
        name=found.name,
        digest=found.digest,
        bytes=found.bytes,
        p50_ms=found.p50_ms,
        p95_ms=found.p95_beside(baseline),
        throughput=found.throughput.value,
        metric=None,
        loss=None,
        bound=None,
        speedup=found.speedup.value,
        speedup_low=found.speedup.interval[0],
        shrink=baseline.bytes / found.bytes,
        luts=found.luts,
        cpu_seconds=None,
    )


def judged(row: CandidateRow, gates: GateSpec) -> CandidateRow:
    """The same candidate under this budget and objective: which forms fail, what became of it, what it costs."""
    forms = tuple(form.model_copy(update={"fails": _fails(form, gates)}) for form in row.forms)
    state, reason = _state(row.model_copy(update={"forms": forms}), gates)
    cost = min((_cost(form, gates.objective) for form in forms), default=0.0)
    return row.model_copy(update={"forms": forms, "state": state, "reason": reason, "cost": cost})


def _fails(form: CandidateForm, gates: GateSpec) -> tuple[str, ...]:
    own = [("non_inferior_to_baseline", form.bound is not None and form.bound > gates.margin)]
    own += [(gate, bool(text)) for gate, text in _over(form, gates).items()]
    others = [gate for gate in form.fails if gate not in _OF_FORMS]
    return (*(gate for gate, fails in own if fails), *others)


def _over(form: CandidateForm, gates: GateSpec) -> dict[str, str]:
    """What of the budget the form exceeds by its structure, in words, by gate."""
    found = {}
    if gates.max_p95_ms is not None and form.p95_ms > gates.max_p95_ms:
        found["latency"] = f"p95 {form.p95_ms:.3g} ms > {gates.max_p95_ms:g} ms"
    if gates.max_bytes is not None and form.bytes > gates.max_bytes:
        found["size"] = f"{form.bytes} bytes > {gates.max_bytes} bytes"
    if gates.min_speedup is not None and form.speedup_low is not None and form.speedup_low < gates.min_speedup:
        found["speedup"] = f"{form.speedup_low:.3g}x as fast (lower end) < {gates.min_speedup:g}x"
    if gates.min_shrink is not None and form.shrink is not None and form.shrink < gates.min_shrink:
        found["shrink"] = f"{form.shrink:.3g}x smaller < {gates.min_shrink:g}x"
    if gates.max_luts is not None and form.luts is None:
        found["fpga"] = NO_CIRCUIT
    elif gates.max_luts is not None and form.luts is not None and form.luts > gates.max_luts:
        found["fpga"] = f"about {form.luts} LUTs > {gates.max_luts} LUTs"
    return found


def _cost(form: CandidateForm, objective: Objective) -> float:
    return objective_cost(objective, latency=form.p50_ms, size=float(form.bytes), throughput=form.throughput)


def _state(row: CandidateRow, gates: GateSpec) -> tuple[State, str]:
    trained = bool(row.losses) or row.kind == "teacher"
    passing = [f for f in row.forms if not f.fails]
    if trained and passing:
        return "keeps the budget", f"{min(passing, key=lambda f: _cost(f, gates.objective)).name} fails no gate"
    if row.state == "failed":
        return "failed", row.reason
    over = [_over(form, gates) for form in row.forms]
    if over and all(over):
        nearest = min(over, key=lambda texts: (len(texts), NO_CIRCUIT in texts.values()))
        return "over the budget", "; ".join(nearest.values())
    if not row.forms and gates.max_bytes is not None and row.planned_bytes > gates.max_bytes:
        return "over the budget", f"planned with {row.planned_bytes:.0f} bytes > {gates.max_bytes} bytes"
    if not trained and row.behind:
        return "not reached", f"{row.behind} costs no more and is planned to lose less"
    if not trained:
        return "not reached", "a dearer candidate lost too much already, or the search ended before"
    bounds = [f.bound for f in row.forms if f.bound is not None]
    reason = f"95 % bound of the loss {min(bounds):.4f} > {gates.margin:g}"
    if row.rung < row.rungs:
        return "given up", f"{reason} after {row.rung} of {row.rungs} trainings"
    return "loses too much", reason
