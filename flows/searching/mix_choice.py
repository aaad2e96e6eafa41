"""Which mix of labels and the teacher's answers candidates learn from, and how fast, by the first training of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flows.searching.candidate import Candidate
from flows.searching.tally import Tally
from flows.searching.training_plan import LABELS, MOST_EPOCHS, TrainingPlan
from model_registry.variant import Variant
from tasks.distill import distill
from tasks.evidence.search_summary import TRAINED_ON, MixTried
from tasks.running.errors import CANDIDATE_FAILURES, TrainingDiverged
from tasks.running.stage import Outcome

Mix = Mapping[str, Any]
_TEACHING = 0.2
"""Of the minutes, at most, to train the teacher on, where the spec allows that."""
_SLOWER = 4.0
"""Times: narrow layers without norms die at a learning rate that others like."""
_MOMENTUM: Mix = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 5e-4}
"""What suits many convolutional networks better than AdamW: the usual settings of residual ones (He et al. 2016,
arXiv:1512.03385, section 4.2)."""
_CLEARLY = 0.5
"""Margins by which that must do better: a wide first candidate may like it by chance, or alone. A VGG's did by 0.3
points, and narrower ones lost 1.5 points after 36 epochs of it, where AdamW left 0.8 after 54."""
_LEARNED = 0.1
"""Of the validation loss after one epoch: where it falls by that, the learning rate is well enough."""


class MixChoice:
    """Tries mixes with ever more of the teacher until that does worse, and the best one by SGD, or at a lower learning
    rate where its loss did not fall well; where labels alone do best and the spec wants it, trains the teacher on and
    tries it again.

    Args:
        train: the candidate's next training with a mix, by the teachers of the plan.
    """

    def __init__(self, plan: TrainingPlan, tally: Tally, train: Callable[[Candidate, Mix], Outcome]) -> None:
        self.plan, self.tally, self.train = plan, tally, train
        self._tries = 0
        self._made: list[tuple[Mix, MixTried, tuple[Variant, ...], bool]] = []
        """The last of each: whether its loss fell well."""

    def choose_teacher(self, candidate: Candidate, taught: Mix, teacher: Variant) -> None:
        """Whether all further candidates learn from that teacher's answers too, or from labels alone as before.

        Raises:
            TrainingDiverged: either way.
        """
        usual, self.plan.teachers = self.plan.teachers, (teacher,)
        try:
            self._try(candidate, taught, last=False)
        finally:
            self.plan.teachers = usual
        self._try(candidate, LABELS, last=True)
        earlier = self.tally.mixes
        self._decide()
        self.tally.mixes = (*earlier, *self.tally.mixes)

    def choose(self, candidate: Candidate, mixes: Sequence[Mix]) -> None:
        """Decide the plan's mix, and who teaches: what gave the best metric on validation.

        Raises:
            TrainingDiverged: with every mix.
        """
        choosing_rate = not self.plan.setup.says("learning_rate")
        for number, mix in enumerate(mixes):
            if number > 1 and len(self._made) == number and self._best() is not self._made[-1]:
                break  # less of the teacher did better
            self._try(candidate, mix, last=number == len(mixes) - 1 and not choosing_rate)
        if choosing_rate and not self._made:
            self._try(candidate, self._more_slowly(mixes[0]), last=True)
        taught = [mix for mix in mixes if mix["alpha"] > 0]
        if self.plan.setup.settings.train_teacher and self._best()[1].alpha == 0 and taught:
            self._train_teacher()
            if self.plan.teachers[0] != self.plan.setup.teacher:
                for mix in taught:
                    self._try(candidate, mix, last=False)
        best = self._best()
        self.plan.teachers = best[2]
        other = self._other_steps(best[0], fell=best[3])
        if choosing_rate and other and self.tally.trials < self.plan.setup.settings.trials:
            self._try(candidate, other, last=False)
        self._decide()

    def _decide(self) -> None:
        """Take over the best, and keep for the report what was tried."""
        mix, best, self.plan.teachers, _ = self._best()
        self.tally.mixes = tuple(tried.model_copy(update={"chosen": tried is best}) for _, tried, *_ in self._made)
        self.plan.decide_mix(mix)

    def _other_steps(self, mix: Mix, *, fell: bool) -> Mix:
        """The mix with the steps that are tried besides; empty where there are none."""
        if "learning_rate" in mix:
            return {}
        if not fell:
            return self._more_slowly(mix)
        said = any(map(self.plan.setup.says, ("optimizer", "weight_decay")))
        return {} if said else {**mix, **_MOMENTUM}

    def _more_slowly(self, mix: Mix) -> Mix:
        return {**mix, "learning_rate": self.plan.distilling.learning_rate / _SLOWER}

    def _try(self, candidate: Candidate, mix: Mix, *, last: bool) -> None:
        if self._tries:  # the first is counted by whoever asks
            self.tally.count_training()
        self._tries += 1
        try:
            outcome = self.train(candidate, mix)
        except TrainingDiverged:
            if last and not self._made:
                raise
            self.tally.forgive()
            return
        spec, found, teachers = self.plan.rung(candidate, mix), outcome.values["student"], self.plan.teachers
        tried = MixTried(
            alpha=float(spec.alpha),
            temperature=float(spec.temperature),
            views=spec.views,
            learning_rate=spec.learning_rate,
            optimizer=spec.optimizer,
            metric=found["val_metric"],
            loss=found["val_loss"],
            candidate=candidate.name,
            teacher="" if teachers[0] == self.plan.setup.teacher else teachers[0].name,
        )
        self._made.append((mix, tried, teachers, _fell(found["first_val_loss"], found["val_loss"])))

    def _best(self) -> tuple[Mix, MixTried, tuple[Variant, ...], bool]:
        """Of equals the first; one with other steps if it is clearly better."""
        sign = 1.0 if self.plan.setup.data.metric.better == "higher" else -1.0
        usual = [made for made in self._made if "optimizer" not in made[0]]
        best = max(usual, key=lambda made: (sign * made[1].metric, -made[1].loss))
        enough = _CLEARLY * self.plan.setup.spec.gates.resolved(best[1].metric).margin
        others = [made for made in self._made if "optimizer" in made[0]]
        return next((made for made in others if sign * (made[1].metric - best[1].metric) > enough), best)

    def _train_teacher(self) -> None:
        """Train the teacher on with labels alone; it teaches from now on if it got better. The baseline stays."""
        setup = self.plan.setup
        epoch = setup.data.split("train").rows * self.tally.candidates[0].row_seconds
        epochs = int(min(MOST_EPOCHS, _TEACHING * 60 * setup.settings.minutes / max(1e-9, epoch)))
        if epochs < 1:
            self.tally.untried.append(
                f"more training of the teacher: one epoch of it takes about {epoch:.0f} s, more than search.minutes "
                "leaves for that"
            )
            return
        spec = self.plan.distilling.model_copy(update={**LABELS, "hints": None, "epochs": epochs})
        self.tally.count_training()
        try:
            outcome = distill(
                setup.job, spec, data=setup.data, teacher=setup.teacher, parent=setup.teacher, label=TRAINED_ON
            )
        except CANDIDATE_FAILURES as error:
            self.tally.forgive()
            self.tally.untried.append(f"a teacher that was trained on: {type(error).__name__}: {error}")
            return
        self.tally.add_step(outcome, (setup.teacher,))
        before, after = (outcome.values[who]["val_metric"] for who in ("parent", "student"))
        if (after > before) == (setup.data.metric.better == "higher") and after != before:
            self.plan.teachers = (outcome.variants[0], *setup.others)
        else:
            self.tally.untried.append(
                f"a teacher that was trained on: {epochs} epochs more did not make it better on validation "
                f"({before:.4g}, then {after:.4g})"
            )


def _fell(first: float, last: float) -> bool:
    """Losses may be negative: log-densities are."""
    return first - last > _LEARNED * abs(first)
