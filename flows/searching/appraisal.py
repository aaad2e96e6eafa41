"""How files and candidates stand under the budget: what they cost, what they exceed, which is the best."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flows.searching.candidate import Candidate, loss_of, released
from flows.searching.halving import Rules, Standing
from flows.searching.search_setup import SearchSetup
from flows.searching.training_plan import TrainingPlan
from model_registry.measurement import Clocked, Measurement
from model_registry.sizes import size_text
from tasks.validate.choice import best_of, failing_gates
from tasks.validate.gate_rows import structural_rows
from tasks.validate.gate_spec import GateSpec
from tasks.validate.sequence import cost_of_objective

_TRUST = 1.2
"""How many times cheaper than planned something may turn out."""
_SLOWEST, _FASTEST = 0.3, 1.5
"""Losses fall at least, and at most, with this power of the epochs, as far as the guess goes: after a first training of
an epoch or two, powers of 1.8 and more were seen."""
_STEEPNESS = 0.12
"""Of the teacher's metric, what an epoch leaves for each unit of damage, and more epochs in proportion less: a ResNet's
6 to 25 points after one, a MobileNet's 2.3 and a VGG's 1.1 after nine."""
_MOST_DAMAGE = 30.0
_BEFORE = 2
"""Trainings that it would take to say as much as what is expected before any of them."""
_MUCH_LONGER, _STANDING_STILL = 1.5, 0.2
"""Times the epochs; and a power of them with which a loss hardly falls."""
_ONE_SIDED = 1.645
"""Standard errors of a half-width."""


@dataclass(frozen=True)
class Appraisal:
    """The budget and objective of the setup, against the baseline; ``plan``: how long trainings take."""

    setup: SearchSetup
    baseline: Measurement
    plan: TrainingPlan

    @property
    def gates(self) -> GateSpec:
        """Those of the spec, with the margin in the metric's unit on validation."""
        return self.setup.spec.gates.resolved(self.baseline.metric.value)

    def cost(self, form: Measurement | Clocked) -> float:
        """What the objective counts, lower is better; latency as a share of the teacher's."""
        return cost_of_objective(self.setup.spec.objective, form)

    def share_of_teacher(self, candidate: Candidate) -> float:
        """What the candidate's fp32 file costs, as a share of the teacher's."""
        return self.cost(candidate.clocked[0]) / self.cost(self.baseline)

    def passes(self, form: Measurement) -> bool:
        """Whether the form keeps the whole budget on validation."""
        return not failing_gates(self.setup.spec.gates, form, self.baseline)

    def over_budget(self, form: Measurement | Clocked) -> list[str]:
        """What of the budget the form exceeds by its structure, whatever training does."""
        gates = structural_rows(self.setup.spec.gates, form, baseline_costs=self.baseline)
        exceeded = [g for g in gates if not g.within]
        return [
            g.meaning
            if math.isnan(g.value)
            else f"{g.meaning} {g.value:.4g} {'>' if g.at_most else '<'} {g.limit:g} {g.unit}"
            for g in exceeded
        ]

    def cheapest(self, forms: Iterable[Measurement]) -> Measurement | None:
        """The best form of those that keep the whole budget, as the release chooses it."""
        passing = [form for form in forms if self.passes(form)]
        return best_of(self.setup.spec.objective, passing)[0] if passing else None

    def only_int8_fails(self, candidate: Candidate) -> bool:
        """Whether the static int8 file loses too much and would otherwise be the best, and fp32 loses little."""
        int8 = candidate.int8.digest if candidate.int8 else ""
        form = next((m for m in candidate.forms if m.digest == int8), None)
        if form is None or self.over_budget(form):
            return False
        proven = [self.cost(m) for m in candidate.forms if released(m) and self.passes(m)]
        if proven and min(proven) <= self.cost(form):
            return False
        reference = next((m.paired for m in candidate.forms if m.digest != int8 and m.paired), None)
        return not self.passes(form) and (reference is None or reference.bound <= self.gates.margin)

    def rules(self, candidates: Sequence[Candidate], start: float) -> Rules:
        """What the halving goes by; trainings that were made tell how much more epochs gain, one alone only a little.

        Args:
            start: cost where the first training of all is looked for.
        """
        powers = [power for candidate in candidates for power in self._powers(candidate)]
        first = self.plan.epochs[0] if self.plan.epochs else 1
        # Before any training has shown it: the most after one epoch, half of it after eight; later ones gain less.
        before = _FASTEST / (1 + math.log2(first) / 3)
        power = (sum(powers) + _BEFORE * before) / (len(powers) + _BEFORE)
        return Rules(
            margin=self.gates.margin,
            rungs=self.setup.settings.rungs,
            power=min(_FASTEST, max(_SLOWEST, power)),
            steepness=_STEEPNESS * abs(self.baseline.metric.value) / first,
            start=start,
            looks_left=self.plan.looks_left,
            gauged=self.plan.gauged,
            mixed=self.plan.mixed,
        )

    def _powers(self, candidate: Candidate) -> list[float]:
        """With which power of the epochs its loss fell from one rung to the next, where they grew much.

        A loss below its standard error counts as that: the logarithm of one that may as well be none says nothing.
        """
        error = _error(candidate)
        pairs = itertools.pairwise(zip(candidate.losses, candidate.epochs, strict=False))
        return [
            math.log(before / max(after, error)) / math.log(many / few)
            for (before, few), (after, many) in pairs
            if before > max(after, error) > 0 and many >= _MUCH_LONGER * few
        ]

    def standing(self, candidate: Candidate) -> Standing:
        """The candidate as the halving sees it."""
        known = candidate.losses and candidate.forms
        best = _best(candidate)
        loss = loss_of(best) if known and best else (0.0 if candidate.kind == "teacher" else None)
        files: Sequence[Measurement | Clocked] = [m for m in candidate.forms if released(m)] or candidate.clocked
        fits = [m for m in files if not self.over_budget(m)]
        return Standing(
            name=candidate.name,
            cost=min(map(self.cost, fits or files), default=candidate.planned or float("inf")),
            last=candidate.last,
            rung=candidate.rung,
            loss=loss,
            spread=_half_width(best) if known and best else 0.0,
            possible=self._possible(candidate, bool(fits)) and not candidate.failure and not candidate.behind,
            seconds=self.plan.seconds(candidate),
            ahead=self.plan.ahead(candidate),
            finish=self.plan.finish_seconds(candidate),
            kind=candidate.family,
            fresh=candidate.kind == "student",
            longer=candidate.longer,
            stalled=_stalled(candidate) if candidate.views or not self.plan.by_heart else None,
            power=_latest_power(candidate),
            damage=0.0 if candidate.kind == "cut" else _finite(candidate.damage),
            first=candidate.losses[0] if candidate.losses else None,
        )

    def nearly_proven(self, candidate: Candidate) -> bool:
        """Whether its loss is within the margin, fell in its latest training, and no file of it keeps the budget: what
        is missing is certainty, or little."""
        fell = len(candidate.losses) < 2 or candidate.losses[-1] < candidate.losses[-2]
        proven = any(released(m) and self.passes(m) for m in candidate.forms)
        return fell and not proven and candidate.losses[-1] <= self.gates.margin

    def _possible(self, candidate: Candidate, fits: bool) -> bool:
        """Whether a file keeps the limits of cost; of one that is only planned, whether it may."""
        if candidate.made or not candidate.planned:
            return fits or not candidate.made
        gates, size = self.setup.spec.gates, candidate.planned_bytes / _TRUST
        if candidate.planned_share / _TRUST > 1 / (gates.min_speedup or 1):
            return False
        return size <= min(gates.max_bytes or math.inf, self.baseline.bytes / (gates.min_shrink or 1))

    def line(self, candidate: Candidate) -> str:
        """The candidate in a few words."""
        if candidate.failure:
            return f"failed: {candidate.failure}"
        files = [m for m in candidate.forms if released(m)]
        if files:
            return self.line_of(min(files, key=lambda m: (not self.passes(m), self.cost(m))))
        if candidate.clocked:
            timed = min(candidate.clocked, key=lambda m: (bool(self.over_budget(m)), self.cost(m)))
            over = ", over the budget" if self.over_budget(timed) else ""
            return f"untrained, {timed.p50_ms:.3g} ms, {size_text(timed.bytes)}{over}"
        return "nothing measured"

    def line_of(self, form: Measurement) -> str:
        """A measured file in a few words."""
        faster = f", {form.speedup.value:.1f}x" if form.speedup else ""
        return f"{form.p50_ms:.3g} ms{faster}, {size_text(form.bytes)}, loss {loss_of(form):+.4f}"


def _best(candidate: Candidate) -> Measurement | None:
    """Of its files the one that loses least."""
    return min((m for m in candidate.forms if m.paired), key=loss_of, default=None)


def _half_width(form: Measurement) -> float:
    """Of the one-sided 95 % bound of its loss."""
    return form.paired.bound + form.paired.difference if form.paired else 0.0


def _error(candidate: Candidate) -> float:
    """Standard error of its loss."""
    best = _best(candidate)
    return _half_width(best) / _ONE_SIDED if best else 0.0


def _finite(damage: float | None) -> float | None:
    """What is as good as infinite would outweigh all others."""
    return None if damage is None else min(damage, _MOST_DAMAGE)


def _latest_power(candidate: Candidate) -> float | None:
    """With which power of the epochs its loss fell in its latest training, within what powers are; None where that was
    short, or the loss was none to speak of before."""
    pairs = list(zip(candidate.losses, candidate.epochs, strict=False))
    if len(pairs) < 2 or len(candidate.losses) > len(candidate.epochs):
        return None
    (before, few), (after, many) = pairs[-2:]
    error = _error(candidate)
    if many < _MUCH_LONGER * few or before <= max(error, 0.0):
        return None
    least = max(after, error)
    fell = math.log(before / least) / math.log(many / few) if least > 0 else math.inf
    return min(_FASTEST, max(_SLOWEST, fell))


def _stalled(candidate: Candidate) -> float | None:
    """With which power of the epochs its loss fell in its latest training, where they grew much and it hardly did."""
    if len(candidate.losses) < 2 or len(candidate.epochs) < len(candidate.losses):
        return None
    (before, few), (after, many) = list(zip(candidate.losses, candidate.epochs, strict=False))[-2:]
    if before <= 0 or few < 1 or many < _MUCH_LONGER * few:
        return None
    power = math.log(before / after) / math.log(many / few) if after > 0 else math.inf
    return max(0.0, power) if power < _STANDING_STILL else None
