"""How candidates are trained: a rung further, with the teacher's help; the winner once more without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flows.lineage import CONTROL
from flows.searching.appraisal import Appraisal
from flows.searching.candidate import Candidate, loss_of, released
from flows.searching.form_maker import FormMaker
from flows.searching.search_setup import SearchSetup
from flows.searching.tally import Tally
from model_registry.store import Store
from tasks.ask import AskSpec, ask
from tasks.distill import DistillSpec, distill
from tasks.evidence.arrays import fetch_arrays
from tasks.evidence.paired import compare_paired
from tasks.export import export
from tasks.measure import measurement_of
from tasks.qat import qat


@dataclass(frozen=True)
class RungTrainer:
    """Trains candidates, and measures what came of it."""

    setup: SearchSetup
    tally: Tally
    appraisal: Appraisal
    forms: FormMaker

    def ask_teachers(self) -> None:
        """Before the first training, so that what the teachers take is not taken for its time.

        A teacher that was brought as an ONNX file teaches nobody but its own int8 file, which asks by itself.
        """
        setup = self.setup
        if self.tally.trials == 0 and setup.teacher.format == "torch":
            questions = AskSpec(views=setup.distilling.views)
            self.tally.count(ask(setup.job, questions, data=setup.data, teachers=(setup.teacher, *setup.others)))

    def advance(self, candidate: Candidate) -> None:
        """Train it one rung further and measure what came of it."""
        self.tally.count_training()
        work = self._train if candidate.rung < self.setup.settings.rungs else self._tune
        self.tally.attempt(candidate, lambda: work(candidate))

    def prove_teaching(self, winner: Candidate | None) -> dict[str, float]:
        """Train the winner's structure once more, rung by rung, without the teacher: what did the teacher gain?

        Returns:
            ``gain`` in the metric's unit, ``low`` and ``high`` (95 %, paired) and ``p``; empty where nothing is asked.
        """
        setup, tally = self.setup, self.tally
        if not (setup.settings.control and winner and winner.kind != "teacher" and winner.rung):
            return {}
        trained = min(winner.rung, setup.settings.rungs)
        taught = tally.variant(f"{winner.name}-r{trained}.fp32")
        untrained = model = tally.variant(winner.name)
        for rung in range(trained):
            spec = self._rung_spec(rung, winner).model_copy(update={"alpha": 0.0, "hints": None})
            label = f"{CONTROL}-{winner.name}-r{rung + 1}"
            outcome = distill(setup.job, spec, data=setup.data, teacher=setup.teacher, parent=model, label=label)
            tally.add_step(outcome, (untrained,)) if rung == trained - 1 else tally.count(outcome)
            model = outcome.variants[0]
        exported = tally.add_step(export(setup.job, setup.spec.export, data=setup.data, parent=model), (model,))
        tally.control = control = self.forms.measure(exported.variant)
        ours, theirs = measurement_of(tally.measured.get(taught.digest, control)), measurement_of(control)
        store = Store(setup.job.store)
        scores = [fetch_arrays(store, m.scores)["score"] for m in (ours, theirs)]
        paired = compare_paired(scores[0], scores[1], better=ours.metric.better, reference=theirs.digest)
        low, high = paired.interval
        return {"gain": paired.difference, "low": low, "high": high, "p": paired.p}

    def _train(self, candidate: Candidate) -> None:
        """With the teachers' help; the files that were proven before are kept beside the new ones."""
        setup, parent = self.setup, candidate.model
        assert parent is not None
        spec, label = self._rung_spec(candidate.rung, candidate), f"{candidate.name}-r{candidate.rung + 1}"
        outcome = distill(
            setup.job, spec, data=setup.data, teacher=setup.teacher, parent=parent, others=setup.others, label=label
        )
        candidate.training_seconds = outcome.cost_seconds
        candidate.model = self.tally.add_step(outcome, (parent, setup.teacher), candidate).variants[0]
        if candidate.rung:
            candidate.earlier += tuple(m for m in candidate.forms if released(m) and self.appraisal.passes(m))
        candidate.rung += 1
        self.forms.of_model(candidate, label)
        if candidate.rung == setup.settings.rungs:
            self.forms.refine(candidate, label)
        candidate.losses.append(min(loss_of(m) for m in candidate.forms))

    def _tune(self, candidate: Candidate) -> None:
        """Quantization-aware training of its int8 file, if it has one."""
        candidate.rung += 1
        assert candidate.float32 is not None
        if candidate.int8 is None:
            candidate.last = candidate.rung
            return
        outcome = qat(
            self.setup.job,
            self.setup.tuning,
            data=self.setup.data,
            parent=candidate.int8,
            teacher=self.setup.teacher,
            float_parent=candidate.float32,
            label=candidate.int8.name.removesuffix(".int8-static"),
        )
        self.tally.add_step(outcome, (candidate.int8, self.setup.teacher), candidate)
        form = measurement_of(self.forms.measure(outcome.variant))
        candidate.forms = (*candidate.forms, form)
        candidate.losses.append(loss_of(form))

    def _rung_spec(self, rung: int, candidate: Candidate) -> DistillSpec:
        update: dict[str, Any] = {"epochs": self.setup.epochs[rung], "control": False}
        if candidate.kind == "student":
            update["scale"] = candidate.settings["scale"]
        return self.setup.distilling.model_copy(update=update)
