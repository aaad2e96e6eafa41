"""How candidates are trained: as the spec says, and where it is silent as minutes and the first training allow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flows.searching.candidate import Candidate
from flows.searching.halving import HURRY, rung_epochs
from flows.searching.search_setup import SearchSetup
from model_registry.variant import Variant
from tasks.ask import AskSpec
from tasks.distill import DistillSpec
from tasks.qat import QatSpec
from tasks.running.task_kind import BY_SIGMOID, BY_SOFTMAX

_SHARED = 0.75
"""Of the seconds that are left, for a candidate's last rung, where another one may still come well within the margin
in the rest."""
MOST_SHARE = 0.9
"""The same where no other one may."""
_PASSED_ON = 0.6
"""The same where narrower ones will begin with what the candidate learns."""
_SCOUTING = 0.03
"""Of the minutes, for the first training of all; other first rungs have as many epochs, or fewer that take as long."""
_LOOKING = 1 / 3
"""Of the minutes, for first trainings: after that the best of those known goes on, whatever has not been looked at."""
MOST_EPOCHS = 300
_ASKING = 0.08
"""Of the minutes, at most, for the teacher's answers."""
_ASKING_FOR_LONG = 0.2
"""Of the seconds that are left, at most, for more of the teacher's answers before a long training."""
_MOST_VIEWS = 4
_BY_HEART = 2.0
"""Margins by which a pupil does better on rows that it learned from: then it has learned them by heart."""
_LONG = 8
"""Epochs of a training in which that does harm."""
_LEAST_SHARE = 0.1
"""Of the training rows, for a first look at what trains slowly."""
_OVERHEAD = 15.0
"""Seconds to export, quantize and measure what was trained, about."""
JUDGING = 1 / 3
"""Of a training step's time: answering a row of the validation split."""
LABELS: Mapping[str, Any] = {"alpha": 0.0, "views": None}
"""The mix of labels alone."""
_TAUGHT = ({"alpha": 0.5, "temperature": 4.0}, {"alpha": 0.9, "temperature": 4.0})
_MATCHED = ({"alpha": 0.5}, {"alpha": 0.9})
"""For what is no classifier; a teacher knows less of the noise in its targets than they do."""


class TrainingPlan:
    """What the spec says about training candidates, and what the search decides in its place.

    Where the spec does not say the epochs, the first rung of all is sized by the minutes, and a candidate's last one by
    what is left of them when it begins: short trainings say where to look, and most of the time goes to one answer.

    Args:
        candidates: those of the search, as it adds them: time is left for another one only if that could use it.
    """

    def __init__(self, setup: SearchSetup, candidates: Sequence[Candidate] = ()) -> None:
        self.setup, self._candidates = setup, candidates
        self.distilling: DistillSpec = setup.distilling.model_copy(update={"control": False})
        self.rows = setup.data.split("train").rows + JUDGING * setup.data.split("validation").rows
        """Of an epoch, those that are judged counted by their share of its time."""
        self.left = 60 * setup.settings.minutes
        """Seconds that are left; kept up to date by the search."""
        self.looks_left = _LOOKING * self.left
        """Seconds that first trainings may still take."""
        self.teachers: tuple[Variant, ...] = (setup.teacher, *setup.others)
        """Who answers; the first may be the teacher after more training."""
        self.view_seconds = 0.0
        """What the teacher takes for a view of all training rows; 0 while unknown."""
        self.mixed = False
        """Whether a training has shown which mix of labels and teacher is best."""
        self.by_heart = False
        """Whether pupils learn the training split by heart, and more rows can be made of it."""
        self.passed_on = False
        """Whether a candidate that does better than the teacher was tried in its place."""
        self.gauged = setup.says("epochs")
        """Whether a candidate was trained twice, so that it is known how much more epochs gain."""
        self.epochs: tuple[int, ...] = ()
        """Of each rung, if nothing is lengthened; empty until they are decided."""
        if setup.says("epochs"):
            self.epochs = rung_epochs(self.distilling.epochs, setup.settings.rungs, setup.settings.eta)

    def decide_epochs(self, first: Candidate) -> None:
        """As many epochs for the first rung as a share of the minutes allows the candidate, which is the first."""
        if self.epochs:
            return
        settings, begin = self.setup.settings, 1
        weights = [settings.eta**rung for rung in range(settings.rungs)]
        if first.row_seconds:
            affordable = _SCOUTING * 60 * settings.minutes / (self.rows * first.row_seconds)
            most = MOST_EPOCHS / (1 + sum(weights[1:-1]))  # the last rung takes what is left
            begin = max(1, int(min(most, affordable)))
        self.epochs = tuple(max(1, round(begin * weight)) for weight in weights)

    def next_epochs(self, candidate: Candidate) -> float:
        """Of the candidate's next training of the whole model; below 1: as large a share of the rows."""
        planned = self.epochs[min(candidate.rung, len(self.epochs) - 1)]
        if self.setup.says("epochs"):
            return planned
        hurried = self._hurried(candidate)
        if not (self.gauged or hurried) and candidate.rung == 1 < self.setup.settings.rungs - 1:
            return candidate.epochs[0]  # twice as many in all tell it, and cost the least
        if candidate.rung < self.setup.settings.rungs - 1 and not hurried:
            return self._scouting_epochs(candidate, candidate.rung)
        before, epoch = candidate.epochs[-1] if candidate.epochs else 0, candidate.epoch_seconds(self.rows)
        if not epoch:
            return planned
        seconds = self._share(candidate) * self.left - _OVERHEAD
        more_views = (self.views(seconds / epoch) or 0) - (self.distilling.views or 0)
        affordable = int((seconds - (self.views(seconds / epoch) or 0) * self.view_seconds * (more_views > 0)) / epoch)
        affordable = min(int(MOST_EPOCHS - before), affordable)
        if candidate.epochs and math.isfinite(candidate.enough):  # no more than it takes
            more = math.ceil(candidate.epochs[-1] * (candidate.enough - 1))
            least = 1 if candidate.longer else self.epochs[candidate.rung - 1]  # but as many as the rung before
            affordable = min(affordable, max(more, least))
        return max(1, affordable)

    def ahead(self, candidate: Candidate) -> float:
        """Epochs that it will have had after its last rung, as a multiple of those that it had."""
        rungs = self.setup.rungs_of(candidate)
        if not self.epochs or candidate.rung >= rungs or (rungs == 1 and not candidate.epochs):
            return 1.0  # of a single training nothing comes after
        had = candidate.epochs[-1] if candidate.epochs else self._scouting_epochs(candidate, 0)
        if self._hurried(candidate):
            return (had + self.next_epochs(candidate)) / had
        if candidate.rung == rungs - 1:
            return (had + self.next_epochs(candidate)) / had
        between = sum(self._scouting_epochs(candidate, rung) for rung in range(max(1, candidate.rung), rungs - 1))
        last, epoch = float(self.epochs[rungs - 1]), candidate.epoch_seconds(self.rows)
        if epoch and not self.setup.says("epochs"):
            seconds = self._share(candidate) * (self.left - between * epoch) - _OVERHEAD
            last = max(1, min(MOST_EPOCHS, int(seconds / epoch)))
        return (had + between + last) / had

    def views(self, epochs: float) -> int | None:
        """Views of each row that the teacher is asked about, for a training of so many epochs: seen again and again, a
        few learn by heart what a short training only saw once."""
        views = self.distilling.views
        if self.by_heart and makes_rows(self) and epochs >= _LONG:
            made = min(_MOST_VIEWS, int(_ASKING_FOR_LONG * self.left / self.view_seconds))
            return made if made > 1 else None  # the first are the rows as they are
        if views is None or not self.view_seconds or self.setup.says("views"):
            return views
        affordable = int(_ASKING_FOR_LONG * self.left / self.view_seconds)
        return max(views, min(_MOST_VIEWS, int(epochs), affordable))

    def finish_seconds(self, candidate: Candidate) -> float:
        """Of the training after which its loss may lie well within the margin, if all goes well."""
        epoch, had = candidate.epoch_seconds(self.rows), candidate.epochs[-1] if candidate.epochs else 0
        if not (epoch and had and math.isfinite(candidate.hoped)):
            return math.inf
        return max(0.0, candidate.hoped - 1) * had * epoch + _OVERHEAD

    def _share(self, candidate: Candidate) -> float:
        """Of the seconds that are left, for the candidate's last training."""
        others = (c for c in self._candidates if c is not candidate and 0 < c.rung < self.setup.rungs_of(c))
        useful = any(self.finish_seconds(other) <= (1 - _SHARED) * self.left for other in others)
        if self._hurried(candidate):
            return MOST_SHARE
        if any(c.base == candidate.name and not (c.made or c.failure or c.behind) for c in self._candidates):
            return _PASSED_ON
        return _SHARED if useful else MOST_SHARE

    def _hurried(self, candidate: Candidate) -> bool:
        """Whether a short training now would leave too little time for the long one: then that is next."""
        rungs, epoch = self.setup.settings.rungs, candidate.epoch_seconds(self.rows)
        if not 0 < candidate.rung < rungs - 1 or self.setup.says("epochs") or not epoch:
            return False
        scouting = self._scouting_epochs(candidate, candidate.rung) * epoch + _OVERHEAD
        finish = self.finish_seconds(candidate)
        return finish <= self.left < scouting + HURRY * finish

    def mixes(self, answer_seconds: float, augments: bool) -> tuple[Mapping[str, Any], ...]:
        """What the first training tries of labels and the teacher's answers; a single one where the spec says it.

        Args:
            answer_seconds: what the teacher takes for a row.
            augments: whether training rows change from epoch to epoch; the teacher is then asked about fixed views.
        """
        if not mix_is_tried(self.setup):
            return ({},)
        self.view_seconds = max(1e-9, self.setup.data.split("train").rows * answer_seconds)
        affordable = int(_ASKING * 60 * self.setup.settings.minutes / self.view_seconds)
        if affordable < 1:
            return (LABELS,)
        views = self.distilling.views or (min(_MOST_VIEWS, affordable, self.epochs[0]) if augments else None)
        taught = _TAUGHT if self.setup.data.task in (*BY_SOFTMAX, *BY_SIGMOID) else _MATCHED
        return (LABELS, *({**mix, "views": views} for mix in taught))

    def decide_mix(self, mix: Mapping[str, Any]) -> None:
        """From now on all candidates are trained with this one."""
        self.distilling = self.distilling.model_copy(update=dict(mix))

    def rung(self, candidate: Candidate, mix: Mapping[str, Any] | None = None) -> DistillSpec:
        """The candidate's next training; what is short after a long one takes smaller steps: large ones would undo more
        than so few epochs restore."""
        epochs = self.next_epochs(candidate)
        update = dict(mix or {})
        if candidate.longer and not self.setup.says("learning_rate"):
            update["learning_rate"] = self.distilling.learning_rate * min(1.0, epochs / candidate.epochs[-1])
        return self.training(candidate, epochs).model_copy(update=update)

    def training(self, candidate: Candidate, epochs: float) -> DistillSpec:
        """A training of the candidate of that many epochs; of less than one, a single one of as large a share."""
        update: dict[str, Any] = {"epochs": max(1, round(epochs))} | ({"share": epochs} if epochs < 1 else {})
        update["views"] = self.views(epochs)
        if candidate.batch_size is not None:
            update["batch_size"] = candidate.batch_size
        if candidate.kind == "student":
            update["scale"] = candidate.settings["scale"]
        return self.distilling.model_copy(update=update)

    def tuning_of(self, candidate: Candidate) -> QatSpec:
        """Its quantization-aware training: where the spec does not say, no longer than what is left allows."""
        spec, epoch = self.setup.tuning, candidate.epoch_seconds(self.rows)
        if self.setup.spec.qat is not None or not epoch:
            return spec
        affordable = int((_SHARED * self.left - _OVERHEAD) / epoch)
        return spec.model_copy(update={"epochs": max(1, min(spec.epochs, affordable))})

    def seconds(self, candidate: Candidate) -> float:
        """What its next training will take, about; by its latest one, where there is one."""
        epoch = candidate.epoch_seconds(self.rows)
        if not epoch:
            return 0.0
        if not self.epochs:
            return epoch + _OVERHEAD  # at least one
        last = candidate.rung >= self.setup.rungs_of(candidate)
        return epoch * (self.tuning_of(candidate).epochs if last else self.next_epochs(candidate)) + _OVERHEAD

    def _scouting_epochs(self, candidate: Candidate, rung: int) -> float:
        """Of a rung before the last: as the first candidate's were sized, or as few (or as small a part of one) as the
        share of the minutes allows one that trains more slowly."""
        planned, epoch = self.epochs[rung], candidate.epoch_seconds(self.rows)
        if self.setup.says("epochs") or not epoch:
            return planned
        settings = self.setup.settings
        affordable = _SCOUTING * 60 * settings.minutes * settings.eta**rung / epoch
        return max(_LEAST_SHARE, min(planned, affordable if affordable < 1 else int(affordable)))


def makes_rows(plan: TrainingPlan) -> bool:
    """Whether a long training may see rows that are made of the split's: a teacher says what they are, and the spec
    does not say how many views there are."""
    said = plan.setup.says("views") or plan.distilling.views is not None
    return not said and plan.distilling.alpha != 0 and plan.view_seconds > 0


def learned_by_heart(found: Mapping[str, Any], better: str, margin: float) -> bool:
    """Whether a training did so much better on rows that it learned from than on others that a long one should see
    more of them, and more can be made.

    Args:
        found: values of the training's outcome.
        margin: of the budget, in the metric's unit.
    """
    pupil = found["student"]
    if found.get("views_of") not in ("moved", "mixed") or "train_metric" not in pupil:
        return False
    gap: float = pupil["train_metric"] - pupil["val_metric"]
    return (gap if better == "higher" else -gap) > _BY_HEART * margin


def affordable_epochs(plan: TrainingPlan, candidate: Candidate) -> float:
    """Of a candidate that most of what is left goes to; infinite where nothing is known of its pace."""
    epoch = candidate.epoch_seconds(plan.rows)
    return _SHARED * max(0.0, plan.left) / epoch if epoch else math.inf


def questions_of(spec: DistillSpec) -> AskSpec | None:
    """What a teacher has to be asked for the training; None where labels alone teach."""
    return AskSpec(views=spec.views, validation=False) if spec.alpha != 0 or spec.hints is not None else None


def mix_is_tried(setup: SearchSetup) -> bool:
    """Whether the first training tells how much labels and the teacher's answers count: if the spec does not say it.

    With a single rung there is no short training that could tell.
    """
    return setup.settings.rungs > 1 and not any(map(setup.says, ("alpha", "temperature", "hints")))
