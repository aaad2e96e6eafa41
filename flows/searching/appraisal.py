"""How files and candidates stand under the budget: what they cost, what they exceed, which is the best."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flows.searching.candidate import Candidate, loss_of, released
from flows.searching.halving import Standing
from flows.searching.search_setup import SearchSetup
from model_registry.measurement import Measurement
from model_registry.sizes import size_text
from tasks.validate.choice import best_of, failing_gates
from tasks.validate.gate_spec import STRUCTURAL


@dataclass(frozen=True)
class Appraisal:
    """The budget and objective of the setup, against the baseline."""

    setup: SearchSetup
    baseline: Measurement

    def cost(self, form: Measurement) -> float:
        """What the objective counts, lower is better: share of the teacher's latency, bytes, or seconds per sample."""
        if self.setup.by_size:
            return float(form.bytes)
        return form.latency_share[0] if self.setup.spec.objective == "latency" else 1.0 / form.throughput.value

    def share_of_teacher(self, candidate: Candidate) -> float:
        """What the candidate's fp32 file costs, as a share of the teacher's."""
        return self.cost(candidate.forms[0]) / self.cost(self.baseline)

    def passes(self, form: Measurement) -> bool:
        """Whether the form keeps the whole budget on validation."""
        return not failing_gates(self.setup.spec.gates, form, self.baseline)

    def over_budget(self, form: Measurement) -> list[str]:
        """What of the budget the form exceeds by its structure, whatever training does."""
        gates = failing_gates(self.setup.spec.gates, form, self.baseline)
        return [
            f"{g.meaning} {g.value:.4g} {'>' if g.at_most else '<'} {g.limit:g} {g.unit}"
            for g in gates
            if g.gate in STRUCTURAL
        ]

    def cheapest(self, forms: Iterable[Measurement]) -> Measurement | None:
        """The best form of those that keep the whole budget, as the release chooses it."""
        passing = [form for form in forms if self.passes(form)]
        return best_of(self.setup.spec.objective, passing)[0] if passing else None

    def only_int8_fails(self, candidate: Candidate) -> bool:
        """Whether the static int8 file loses too much and would otherwise be the best, and fp32 loses little."""
        form = next((m for m in candidate.forms if candidate.int8 and m.digest == candidate.int8.digest), None)
        if form is None or self.over_budget(form):
            return False
        proven = [self.cost(m) for m in candidate.forms if released(m) and self.passes(m)]
        if proven and min(proven) <= self.cost(form):
            return False
        reference = candidate.forms[0].paired
        return not self.passes(form) and (reference is None or reference.bound <= self.setup.spec.gates.margin)

    def standing(self, candidate: Candidate) -> Standing:
        """The candidate as the halving sees it."""
        known = candidate.losses and candidate.forms
        best = min((m for m in candidate.forms if m.paired), key=loss_of, default=None)
        loss = loss_of(best) if known and best else (0.0 if candidate.kind == "teacher" else None)
        fits = [m for m in candidate.forms if not self.over_budget(m)]
        return Standing(
            name=candidate.name,
            cost=min((self.cost(m) for m in fits or candidate.forms if released(m)), default=float("inf")),
            last=candidate.last,
            rung=candidate.rung,
            loss=loss,
            spread=best.paired.bound + best.paired.difference if known and best and best.paired else 0.0,
            possible=bool(fits) and not candidate.failure and not candidate.behind,
            seconds=self._next_seconds(candidate),
            kind=candidate.family,
        )

    def line(self, candidate: Candidate) -> str:
        """The candidate in a few words."""
        if candidate.failure:
            return f"failed: {candidate.failure}"
        files = [m for m in candidate.forms if released(m)]
        if not files:
            return "nothing measured"
        form = min(files, key=lambda m: (not self.passes(m), self.cost(m)))
        if candidate.losses or candidate.kind == "teacher":
            return self.line_of(form)
        over = ", over the budget" if self.over_budget(form) else ""
        return f"untrained, {form.p50_ms:.3g} ms, {size_text(form.bytes)}{over}"

    def line_of(self, form: Measurement) -> str:
        """A measured file in a few words."""
        faster = f", {form.speedup.value:.1f}x" if form.speedup else ""
        return f"{form.p50_ms:.3g} ms{faster}, {size_text(form.bytes)}, loss {loss_of(form):+.4f}"

    def _next_seconds(self, candidate: Candidate) -> float:
        """What the next rung will take, by the latest one: training grows with its epochs."""
        if not candidate.training_seconds or candidate.rung >= self.setup.settings.rungs:
            return candidate.training_seconds
        return candidate.training_seconds * self.setup.epochs[candidate.rung] / self.setup.epochs[candidate.rung - 1]
