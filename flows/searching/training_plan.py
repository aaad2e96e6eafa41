"""How candidates are trained: as the spec says, and where it is silent as minutes and the first training allow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flows.searching.candidate import Candidate
from flows.searching.halving import rung_epochs
from flows.searching.search_setup import SearchSetup
from tasks.ask import AskSpec
from tasks.distill import DistillSpec
from tasks.qat import QatSpec

SHARE = 0.35
"""Of the minutes, for all rungs of the candidate where the search begins; smaller ones train faster."""
MOST_EPOCHS = 300
_ASKING = 0.08
"""Of the minutes, at most, for the teacher's answers."""
_MOST_VIEWS = 4
_OVERHEAD = 15.0
"""Seconds to export, quantize and measure what was trained, about."""
_JUDGING = 1 / 3
"""Of a training step's time: answering a row of the validation split."""
LABELS: Mapping[str, Any] = {"alpha": 0.0, "views": None}
"""The mix of labels alone."""
_TAUGHT = ({"alpha": 0.5, "temperature": 4.0}, {"alpha": 0.9, "temperature": 4.0})
_MATCHED = ({"alpha": 0.5},)
"""For what is no classifier: the teacher's outputs count half."""


class TrainingPlan:
    """What the spec says about training candidates, and what the search decides in its place."""

    def __init__(self, setup: SearchSetup) -> None:
        self.setup = setup
        self.distilling: DistillSpec = setup.distilling.model_copy(update={"control": False})
        self.epochs: tuple[int, ...] = ()
        """Of each rung; empty until they are decided."""
        if setup.says("epochs"):
            self.epochs = rung_epochs(self.distilling.epochs, setup.settings.rungs, setup.settings.eta)

    def decide_epochs(self, first: Candidate, seconds: float) -> None:
        """As many epochs as a share of these seconds allows the candidate, which is the first to be trained."""
        if self.epochs:
            return
        settings = self.setup.settings
        whole = self.distilling.epochs
        if first.row_seconds:
            affordable = SHARE * seconds / (self._rows * first.row_seconds)
            whole = int(min(MOST_EPOCHS, max(settings.rungs, affordable)))
        self.epochs = rung_epochs(whole, settings.rungs, settings.eta)

    def mixes(self, answer_seconds: float, augments: bool) -> tuple[Mapping[str, Any], ...]:
        """What the first training tries of labels and the teacher's answers; a single one where the spec says it.

        Args:
            answer_seconds: what the teacher takes for a row.
            augments: whether training rows change from epoch to epoch; the teacher is then asked about fixed views.
        """
        if self.setup.says("alpha") or self.setup.says("temperature") or self.setup.says("hints"):
            return ({},)
        affordable = int(_ASKING * 60 * self.setup.settings.minutes / max(1e-9, self._train * answer_seconds))
        if affordable < 1:
            return (LABELS,)
        views = self.distilling.views or (min(_MOST_VIEWS, affordable, self.epochs[0]) if augments else None)
        taught = _TAUGHT if self.setup.data.task == "classification" else _MATCHED
        return (LABELS, *({**mix, "views": views} for mix in taught))

    def decide_mix(self, mix: Mapping[str, Any]) -> None:
        """From now on all candidates are trained with this one."""
        self.distilling = self.distilling.model_copy(update=dict(mix))

    def questions(self, mix: Mapping[str, Any] | None = None) -> AskSpec | None:
        """What a teacher has to be asked for trainings with the mix; None where labels alone teach."""
        spec = self.distilling.model_copy(update=dict(mix or {}))
        return AskSpec(views=spec.views) if spec.alpha != 0 or spec.hints is not None else None

    def rung(self, candidate: Candidate, mix: Mapping[str, Any] | None = None) -> DistillSpec:
        """The candidate's next training."""
        update: dict[str, Any] = {"epochs": self.epochs[candidate.rung], **(mix or {})}
        if candidate.kind == "student":
            update["scale"] = candidate.settings["scale"]
        return self.distilling.model_copy(update=update)

    @property
    def tuning(self) -> QatSpec:
        """Quantization-aware training: as long as the first rung, where the spec does not say."""
        if self.setup.spec.qat is not None or not self.epochs:
            return self.setup.tuning
        return self.setup.tuning.model_copy(update={"epochs": self.epochs[0]})

    def seconds(self, candidate: Candidate) -> float:
        """What its next training will take, about; by its latest one, where there is one."""
        if not self.epochs:  # at least one
            return self._rows * candidate.row_seconds + _OVERHEAD if candidate.row_seconds else 0.0
        rungs = self.setup.settings.rungs
        epochs = self.epochs[candidate.rung] if candidate.rung < rungs else self.tuning.epochs
        if candidate.training_seconds and candidate.rung <= rungs:
            return candidate.training_seconds * epochs / self.epochs[candidate.rung - 1] + _OVERHEAD
        if candidate.row_seconds:
            return self._rows * candidate.row_seconds * epochs + _OVERHEAD
        return 0.0

    @property
    def _train(self) -> int:
        return self.setup.data.split("train").rows

    @property
    def _rows(self) -> float:
        return self._train + _JUDGING * self.setup.data.split("validation").rows
