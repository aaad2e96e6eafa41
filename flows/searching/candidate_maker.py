"""How candidates come to be: the teacher as it is, narrower ones of it, and students; none is trained here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flows.searching.appraisal import Appraisal
from flows.searching.candidate import Candidate
from flows.searching.form_maker import FormMaker
from flows.searching.ladder_planner import LadderPlanner
from flows.searching.search_setup import SearchSetup
from flows.searching.tally import Tally
from flows.searching.training_plan import affordable_epochs
from tasks.cut import CutSpec, cut
from tasks.distill import distill
from tasks.prune import prune

_MOST = 0.5
"""Share of inherited weights from which importance and damage mean something before any training."""
_ALL_CUT = "half-third"
_CUTS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("half", "at half its resolution", {"stride": 2}),
    ("third", "with a third of its blocks", {"depth": 0.34}),
    (_ALL_CUT, "at half its resolution with a third of its blocks", {"stride": 2, "depth": 0.34}),
)
_WORTH_CUTTING = 0.9
"""Of the teacher's cost: what is cut and costs more is left alone."""
_BATCHNORM_BATCHES = 10
"""Training moves BatchNorm's statistics within a few dozen batches: they need not be measured well before it."""
_TOLERABLE = 1.0
"""Damage up to which the answer is looked for first: nats for a classifier, else a share of the answers' variance."""
_RECOVERED, _FASTER = 0.1, 1.6
"""Of that, by one epoch; by more with this power of them, as the halving hopes."""


def tolerable_damage(epochs: float) -> float:
    """What so many epochs may well undo: an encoder narrowed by far more had 15 % after one epoch instead of 65."""
    return min(_TOLERABLE, _RECOVERED * math.pow(epochs, _FASTER))


class CandidateMaker:
    """Plans every candidate of a search, and makes and times those that are to be trained."""

    def __init__(self, setup: SearchSetup, tally: Tally, appraisal: Appraisal, forms: FormMaker) -> None:
        self.setup, self.tally, self.appraisal, self.forms = setup, tally, appraisal, forms
        self.ladders = LadderPlanner(setup, tally, appraisal)

    def line_up(self, report: Callable[[], None]) -> None:
        """Plan all of them; ``report`` is called after each that is made."""
        self.add_teacher()
        report()
        if self.setup.teacher.format != "torch":
            return
        if self._unless_refused("narrower ones of the teacher", self.ladders.examine):
            self._unless_refused("narrower ones of the teacher", lambda: self.ladders.plan(None))
        scales = self.setup.settings.students
        bases = self._students(scales) if scales is not None else [*self._cuts(), *self._students(self.ladders.offers)]
        for base in bases:
            self.tally.latest = base
            report()
            # What began with the teacher's layers may be narrowed like it.
            if base.inherited > _MOST and not base.failure:
                self._unless_refused(f"narrower ones of {base.name}", lambda b=base: self.ladders.plan(b))  # type: ignore[misc]
        self.set_aside()

    def start(self) -> float:
        """Cost where the first training of all is looked for: where the damage model expects the answer.

        Narrowing does some damage before training, most of which training undoes: the cheapest of the teacher's
        narrower candidates up to a certain damage of all groups together, which is less where only a few epochs can
        be had of what is left of the minutes.
        """
        narrower = [c for c in self.tally.candidates if c.kind == "pruned" and not c.base]
        ladder = [c for c in narrower if self.appraisal.standing(c).possible]
        plan = self.appraisal.plan
        plan.left = 60 * self.setup.settings.minutes - self.tally.seconds
        fair = [
            c.planned
            for c in ladder
            if c.damage is not None and c.damage <= tolerable_damage(affordable_epochs(plan, c))
        ]
        if fair:
            return min(fair)
        return max((c.planned for c in ladder), default=0.15 * self.appraisal.cost(self.appraisal.baseline))

    def make(self, candidates: Sequence[Candidate]) -> None:
        """Make and time those that are only planned."""
        new = [c for c in candidates if not c.made and not c.failure]
        for candidate in new:
            self.tally.attempt(candidate, lambda c=candidate: self._prune(c))  # type: ignore[misc]
        self._clock(new)
        self._correct(new)
        self.set_aside()

    def add_teacher(self) -> None:
        """The teacher itself, quantized: what costs no training."""
        setup, rungs = self.setup, self.setup.settings.rungs
        candidate = Candidate(
            "teacher", "teacher", "the teacher as it is", {}, setup.trainings, setup.teacher, rung=rungs
        )
        self.tally.candidates.append(candidate)
        self.tally.attempt(candidate, lambda: self.forms.of_teacher(candidate))

    def set_aside(self) -> None:
        """Do without the pruned candidates that another one beats at both cost and planned damage."""
        pruned = [c for c in self.tally.candidates if c.kind == "pruned"]
        for candidate in pruned:
            candidate.behind = ""
        open_ = [(c, self.appraisal.standing(c)) for c in pruned]
        plans = [(c, s.cost, c.damage) for c, s in open_ if s.possible and c.damage is not None]
        for candidate, cost, damage in plans:  # damages are measured against the unpruned network
            better = [(d, c, o.name) for o, c, d in plans if o.base == candidate.base and c <= cost and d < damage]
            candidate.behind = min(better)[2] if better and not candidate.rung else ""

    def _prune(self, candidate: Candidate) -> None:
        """Remove the channels of the candidate's ratios from the teacher, or from the student it is made of."""
        setup, teacher = self.setup, self.setup.teacher
        base = next((c for c in self.tally.candidates if c.name == candidate.base), None)
        parent = base.model if base and base.model else teacher
        update = {
            "ratios": candidate.settings["ratios"],
            "epochs": 0,
            "steps": 1,
            "batch_size": setup.distilling.batch_size,
            "batchnorm_batches": min(_BATCHNORM_BATCHES, setup.pruning.batchnorm_batches),
        }
        spec = setup.pruning.model_copy(update=update)
        outcome = prune(setup.job, spec, data=setup.data, parent=parent, teacher=teacher, label=candidate.name)
        candidate.model = candidate.untrained = self.tally.add_step(outcome, (parent,), candidate).variant
        candidate.pace(outcome.values, larger=not self.setup.says("batch_size"))
        self.forms.sketch(candidate)

    def _clock(self, candidates: Sequence[Candidate]) -> None:
        """Time those that were made; a failure ends all of them, for nothing is known of any."""
        made = [c for c in candidates if c.sketches and not c.failure]
        if not made:
            return
        self.tally.attempt(made[0], lambda: self.forms.clock(made))
        for other in made[1:]:
            other.failure = made[0].failure

    def _correct(self, made: Sequence[Candidate]) -> None:
        """What the allocation expected and a clock did not find is taken for the rest of its ladder too."""
        found: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for candidate in made:
            if candidate.clocked and candidate.planned and not candidate.failure:
                ratio = self.appraisal.standing(candidate).cost / candidate.planned
                share = min(file.latency_share[0] for file in candidate.clocked)
                slower = share / candidate.planned_share if candidate.planned_share else 1.0
                found.setdefault((candidate.base, candidate.form), []).append((ratio, slower))
        for other in self.tally.candidates:
            ratios = found.get((other.base, other.form))
            if ratios and not other.made:
                costs, shares = zip(*ratios, strict=True)
                other.planned *= statistics.geometric_mean(costs)
                other.planned_share *= statistics.geometric_mean(shares)

    def _students(self, scales: Sequence[Mapping[str, Any]]) -> list[Candidate]:
        """Networks of these scales, beginning with those of the teacher's weights that fit them; equal ones once."""
        students = list[Candidate]()
        for number, scale in enumerate(scales, 1):
            what = "student " + ", ".join(f"{k} {v}" for k, v in scale.items())
            candidate = Candidate(f"student{number}", "student", what, {"scale": dict(scale)}, self.setup.trainings)
            self.tally.candidates.append(candidate)
            self.tally.attempt(candidate, lambda c=candidate: self._begin_student(c, students))  # type: ignore[misc]
            if candidate.model is not None or candidate.failure:
                students.append(candidate)
        self._clock(students)
        return students

    def _begin_student(self, candidate: Candidate, others: Sequence[Candidate]) -> None:
        changes = {"scale": candidate.settings["scale"], "epochs": 0, "control": False, "inherit": True}
        spec, teacher = self.setup.distilling.model_copy(update=changes), self.setup.teacher
        outcome = distill(self.setup.job, spec, data=self.setup.data, teacher=teacher, label=candidate.name)
        candidate.settings["scale"] = outcome.values["scale"]
        same = next((o for o in others if o.model and o.settings["scale"] == candidate.settings["scale"]), None)
        if same is not None:
            self.tally.count(outcome, candidate)
            self.tally.candidates.remove(candidate)
            self.tally.untried.append(f"{candidate.what}: the same network as {same.name}")
            return
        candidate.model = candidate.untrained = self.tally.add_step(outcome, (teacher,), candidate).variants[0]
        candidate.inherited = float(outcome.values.get("inherited") or 0.0)
        candidate.pace(outcome.values, larger=not self.setup.says("batch_size"))
        self.forms.sketch(candidate)

    def _cuts(self) -> list[Candidate]:
        """The teacher at a lower resolution and with fewer blocks, as far as it can be had; all weights are its own."""
        made: list[Candidate] = []
        for name, what, changes in _CUTS:
            if name == _ALL_CUT and len(made) < len(_CUTS) - 1:
                continue
            candidate = Candidate(name, "cut", f"teacher {what}", {"cut": dict(changes)}, self.setup.trainings)
            candidate.inherited = 1.0
            if self._unless_refused(f"the teacher {what}", lambda c=candidate: self._begin_cut(c)):  # type: ignore[misc]
                made.append(candidate)
        self._clock(made)
        cheaper = [c for c in made if c.failure or self.appraisal.share_of_teacher(c) < _WORTH_CUTTING]
        self.tally.candidates += cheaper
        return cheaper

    def _begin_cut(self, candidate: Candidate) -> None:
        batches = {"batchnorm_batches": _BATCHNORM_BATCHES, "batch_size": self.setup.distilling.batch_size}
        spec, teacher = CutSpec(**candidate.settings["cut"], **batches), self.setup.teacher
        outcome = cut(self.setup.job, spec, data=self.setup.data, parent=teacher, label=candidate.name)
        candidate.model = candidate.untrained = self.tally.add_step(outcome, (teacher,), candidate).variant
        candidate.pace(outcome.values, larger=not self.setup.says("batch_size"))
        self.forms.sketch(candidate)

    def _unless_refused(self, what: str, work: Callable[[], None]) -> bool:
        """Whether the work could be done; where it could not, the tally notes what is not tried, and why."""
        refused = Candidate(what, "pruned", what, {}, 0)
        latest = self.tally.latest
        self.tally.attempt(refused, work)
        self.tally.latest = latest
        if refused.failure:
            self.tally.untried.append(f"{what}: {refused.failure}")
        return not refused.failure
