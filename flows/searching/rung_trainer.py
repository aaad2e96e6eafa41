"""How candidates are trained: a rung further, with the teacher's help; the winner once more without it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from flows.lineage import CONTROL
from flows.searching.appraisal import Appraisal
from flows.searching.candidate import Candidate, loss_of, released
from flows.searching.form_maker import FormMaker
from flows.searching.mix_choice import MixChoice
from flows.searching.tally import Tally
from flows.searching.training_plan import LABELS, TrainingPlan, learned_by_heart, makes_rows, questions_of
from model_registry.store import Store
from model_registry.variant import Variant
from tasks.ask import AskSpec, ask
from tasks.distill import DistillSpec, distill
from tasks.evidence.arrays import fetch_arrays
from tasks.evidence.paired import compare_paired
from tasks.export import export
from tasks.measure import measurement_of
from tasks.qat import qat
from tasks.running.stage import Outcome


class RungTrainer:
    """Trains candidates, and measures what came of it."""

    def __init__(self, plan: TrainingPlan, tally: Tally, appraisal: Appraisal, forms: FormMaker) -> None:
        self.setup, self.plan, self.tally, self.appraisal, self.forms = plan.setup, plan, tally, appraisal, forms
        self.views_of: str | None = None
        """What views of the training split are made by."""
        self._asked: list[tuple[AskSpec, Variant]] = []
        self._counted: set[str] = set()
        self._lock = threading.Lock()

    def advance(
        self, candidate: Candidate, mixes: Sequence[Mapping[str, Any]] = ({},), pupil: Variant | None = None
    ) -> None:
        """Train it one rung further and measure what came of it.

        Args:
            mixes: where there are several, the training is made with each, and this and all later ones with the best.
            pupil: another candidate's model, which the training is made with too, and with labels alone.
        """
        self.tally.count_training()
        if candidate.rung >= self.setup.rungs_of(candidate):
            self.tally.attempt(candidate, lambda: self._tune(candidate))
            return
        choice = MixChoice(self.plan, self.tally, self._distill)
        if pupil is not None:
            self.tally.attempt(candidate, lambda: choice.choose_teacher(candidate, mixes[0], pupil))
        elif len(mixes) > 1:
            self.tally.attempt(candidate, lambda: choice.choose(candidate, mixes))
        elif mixes[0]:
            self.plan.decide_mix(mixes[0])
        if not candidate.failure:
            self.tally.attempt(candidate, lambda: self._train(candidate))

    def prove_teaching(self, winner: Candidate | None) -> dict[str, float]:
        """Train the winner's structure once more, rung by rung, without the teacher: what did the teacher gain?

        Returns:
            ``gain`` in the metric's unit, ``low`` and ``high`` (95 %, paired) and ``p``; empty where nothing is asked.
        """
        setup, tally = self.setup, self.tally
        if not (setup.settings.control and winner and winner.kind != "teacher" and winner.rung):
            return {}
        trained = min(winner.rung, self.setup.rungs_of(winner))
        taught, untrained = winner.float32, winner.untrained
        assert taught is not None and untrained is not None
        model = untrained
        for rung in range(trained):
            epochs = winner.epochs[rung] - (winner.epochs[rung - 1] if rung else 0)
            views = winner.views if self.views_of == "moved" and rung == trained - 1 else None
            spec = self.plan.training(winner, epochs).model_copy(update={"hints": None, **LABELS, "views": views})
            label = f"{CONTROL}-{winner.name}-r{rung + 1}"
            outcome = distill(setup.job, spec, data=setup.data, teacher=setup.teacher, parent=model, label=label)
            model = outcome.variants[0]
            last = rung == trained - 1
            tally.add_step(outcome, (untrained,), controls=(model.digest,)) if last else tally.count(outcome)
        exported = tally.add_step(export(setup.job, setup.spec.export, data=setup.data, parent=model), (model,))
        tally.control = control = self.forms.measure(exported.variant)
        ours, theirs = measurement_of(self.forms.measure(taught)), measurement_of(control)
        store = Store(setup.job.store)
        scores = [fetch_arrays(store, m.scores)["score"] for m in (ours, theirs)]
        paired = compare_paired(scores[0], scores[1], better=ours.metric.better, reference=theirs.digest)
        low, high = paired.interval
        return {"gain": paired.difference, "low": low, "high": high, "p": paired.p}

    def _distill(self, candidate: Candidate, mix: Mapping[str, Any] | None = None) -> Outcome:
        """The candidate's next training with a mix."""
        return self._taught(candidate, self.plan.rung(candidate, mix))

    def _taught(self, candidate: Candidate, spec: DistillSpec) -> Outcome:
        """Its next training, asked of the store first."""
        setup, parent = self.setup, candidate.model
        assert parent is not None
        teacher, *others = self.plan.teachers
        questions = questions_of(spec)
        if setup.data.language is not None and not others and spec.hints is None:
            questions = None  # a decoder's teacher is asked about whole distributions, which nobody could keep
        # Beforehand, so that what the teachers take is not taken for the training's time. A teacher that was brought as
        # an ONNX file teaches nobody but its own int8 file, which asks by itself.
        with self._lock:
            if questions is not None and (questions, teacher) not in self._asked and teacher.format == "torch":
                self._asked.append((questions, teacher))
                self.tally.count(ask(setup.job, questions, data=setup.data, teachers=(teacher, *others)))
        label = f"{candidate.name}-r{candidate.rung + 1}"
        outcome = distill(
            setup.job, spec, data=setup.data, teacher=teacher, parent=parent, others=tuple(others), label=label
        )
        if outcome.key not in self._counted:
            self._counted.add(outcome.key)
            self.tally.count(outcome, candidate)
        return outcome

    def _train(self, candidate: Candidate) -> None:
        """With the teachers' help; the files that were proven before are kept beside the new ones."""
        parent, rungs = candidate.model, self.setup.rungs_of(candidate)
        assert parent is not None
        label = f"{candidate.name}-r{candidate.rung + 1}"
        epochs = self.plan.next_epochs(candidate)
        spec = self.plan.rung(candidate)
        outcome = self._taught(candidate, spec)
        candidate.training_seconds = outcome.cost_seconds
        candidate.measured_epoch = outcome.values.get("epoch_seconds") or 0.0
        candidate.views, self.views_of = spec.views, outcome.values.get("views_of")
        better, margin = self.setup.data.metric.better, self.appraisal.gates.margin
        candidate.by_heart = learned_by_heart(outcome.values, better, margin)
        candidate.epochs.append(epochs + (candidate.epochs[-1] if candidate.epochs else 0))
        candidate.model = self.tally.keep_step(outcome, (parent, self.plan.teachers[0])).variants[0]
        if candidate.rung:
            candidate.earlier += tuple(m for m in candidate.forms if released(m) and self.appraisal.passes(m))
        candidate.rung += 1
        self.plan.gauged = self.plan.gauged or candidate.rung > 1
        self.forms.of_model(candidate, last=candidate.rung == rungs)
        if candidate.int8 is None:  # nothing for quantization-aware training to begin with
            candidate.last = rungs
        if candidate.rung == rungs:
            self.forms.refine(candidate, label)
        candidate.losses.append(min(loss_of(m) for m in candidate.forms))
        if candidate.rung == rungs and not self.setup.says("epochs") and self.appraisal.nearly_proven(candidate):
            candidate.longer += 1
            candidate.last += 1

    def note_hearts(self, trained: Sequence[Candidate]) -> None:
        """Learn from trainings, when all of those side by side are done, whether long ones are to see other rows; who
        has had its last one of the old ones gets another."""
        by_heart = [c for c in trained if c.by_heart]
        if self.plan.by_heart or not by_heart or not makes_rows(self.plan):
            return
        self.plan.by_heart = True
        for candidate in by_heart:
            if candidate.rung == self.setup.rungs_of(candidate) and not self.setup.says("epochs"):
                candidate.longer += 1
                candidate.last += 1

    def _tune(self, candidate: Candidate) -> None:
        """Quantization-aware training of its int8 file, if it has one."""
        candidate.rung += 1
        assert candidate.float32 is not None
        if candidate.int8 is None:
            candidate.last = candidate.rung
            return
        outcome = qat(
            self.setup.job,
            self.plan.tuning_of(candidate),
            data=self.setup.data,
            parent=candidate.int8,
            teacher=self.setup.teacher,
            float_parent=candidate.float32,
        )
        self.tally.add_step(outcome, (candidate.int8, self.setup.teacher), candidate)
        form = measurement_of(self.forms.measure(outcome.variant))
        candidate.forms = (*candidate.forms, form)
        candidate.losses.append(loss_of(form))
