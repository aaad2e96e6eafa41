"""Candidates of a search: how one is made, trained a rung further, turned into files and measured."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from flows.lineage import CONTROL, Made, MadeStep
from flows.searching.candidate import Candidate, loss_of, released
from flows.searching.halving import Standing, rung_epochs
from flows.spec import PipelineSpec
from model_registry.measurement import Measurement
from model_registry.sizes import size_text
from model_registry.store import Store
from model_registry.variant import Variant
from tasks.ask import AskSpec, ask
from tasks.distill import DistillSpec, distill
from tasks.evidence.arrays import fetch_arrays
from tasks.evidence.paired import compare_paired
from tasks.export import export
from tasks.measure import measure, measurement_of
from tasks.prune import PruneSpec, prune
from tasks.qat import QatSpec, qat
from tasks.quantize import QuantizeSpec, quantize
from tasks.running.errors import CANDIDATE_FAILURES
from tasks.running.journal import journal
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Outcome
from tasks.validate.choice import failing_gates
from tasks.validate.gate_spec import STRUCTURAL

_REFINED = "refined"
_MOST = 0.5
"""Share of inherited weights from which importance and damage mean something before any training."""


class Workshop:
    """Makes and measures what the search asks for, and keeps count of what it cost."""

    def __init__(
        self, job: Job, spec: PipelineSpec, data: DataRef, trained: Outcome, others: tuple[Variant, ...] = ()
    ) -> None:
        assert spec.search is not None
        self.job, self.spec, self.data, self.settings = job, spec, data, spec.search
        if self.settings.parallel > 1:
            cores = len(os.sched_getaffinity(0))
            self.job = job.model_copy(update={"threads": max(1, cores // self.settings.parallel)})
        self.trained, self.teacher, self.others = trained, trained.variant, others
        self.distilling = spec.distill or DistillSpec()
        self.pruning = spec.prune or PruneSpec()
        self.quantizing = spec.quantize or QuantizeSpec(methods=("static", "dynamic", "weights8"))
        self.tuning = spec.qat or QatSpec()
        self.epochs = rung_epochs(self.distilling.epochs, self.settings.rungs, self.settings.eta)
        self.steps: list[MadeStep] = [MadeStep(trained)]
        self.candidates: list[Candidate] = []
        self.latest: Candidate | None = None
        self.trials, self.seconds = 0, 0.0
        self.sensitivity: dict[str, dict[str, float]] = {}
        self.control: dict[str, float] = {}
        self._extra: list[Outcome] = []
        self._outcomes: dict[str, Outcome] = {}
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """The baseline: the teacher as exported (or the file that was brought), measured."""
        self.exported = self.teacher
        if self.teacher.format == "torch":
            outcome = self.note(export(self.job, self.spec.export, data=self.data, parent=self.teacher))
            self.steps.append(MadeStep(outcome, (self.teacher,)))
            self.exported = outcome.variant
        self.baseline = measure(self.job, self.spec.measure, data=self.data, variant=self.exported)

    @property
    def baseline_measurement(self) -> Measurement:
        return measurement_of(self.baseline)

    def note(self, outcome: Outcome) -> Outcome:
        """Count what the outcome cost when it was computed."""
        with self._lock:
            self.seconds += outcome.cost_seconds
        return outcome

    def forms(self) -> tuple[Measurement, ...]:
        """Every file of every candidate that was trained (the teacher counts as trained), as it is now."""
        trained = [c for c in self.candidates if c.rung or c.kind == "teacher"]
        return tuple(m for c in trained for m in (*c.forms, *c.earlier) if released(m))

    # How candidates come to be

    def add_teacher(self) -> None:
        """The teacher itself, quantized: what costs no training."""
        trained = self.settings.rungs
        candidate = Candidate("teacher", "teacher", "the teacher as it is", {}, trained, self.teacher, rung=trained)
        candidate.last += self._may_tune(candidate)

        def make() -> None:
            candidate.float32 = self.exported
            self._measure_forms(candidate, "teacher", [self.baseline], self.quantizing)
            if self._only_int8_fails(candidate):
                self._refine(candidate, "teacher")

        self._add(candidate, make)

    def add_pruned(self, rung: Mapping[str, Any], base: Candidate | None = None) -> None:
        """The teacher with channels removed by the ratios; not yet trained, so that only its cost is known.

        Args:
            base: a shallower student that began with the teacher's layers, narrowed in its place.
        """
        share, kind = float(rung["share"]), rung["kind"]
        prefix, whole, its = (f"{base.name}-", base.what, "the teacher's") if base else ("", "teacher", "its")
        name = f"{prefix}pruned{round(100 * share):02d}" + ("f" if kind == "fp32" else "")
        what = f"{whole} pruned to {share:.0%} of {its} " + ("size" if self._by_size else f"latency in {kind}")
        settings = {"ratios": dict(rung["ratios"]), **(base.settings if base else {})}
        candidate = Candidate(name, "pruned", what, settings, self.settings.rungs, base=base.name if base else "")
        candidate.damage = float(rung["predicted_damage"])
        candidate.last += self._may_tune(candidate)

        def make() -> None:
            spec = self.pruning.model_copy(update={"ratios": dict(rung["ratios"]), "epochs": 0, "steps": 1})
            parent = base.model if base and base.model else self.teacher
            outcome = self._of(
                candidate,
                prune(self.job, spec, data=self.data, parent=parent, teacher=self.teacher, label=name),
                (parent,),
            )
            candidate.model = outcome.variant
            self._make_forms(candidate, name)

        self._add(candidate, make)

    def set_aside(self) -> None:
        """Do without the pruned candidates that another one beats at both cost and planned damage."""
        open_ = [(c, self.standing(c)) for c in self.candidates if c.kind == "pruned"]
        plans = [(c, s.cost, c.damage) for c, s in open_ if s.possible and c.damage is not None]
        for candidate, cost, damage in plans:  # damages are measured against the unpruned network
            better = [(d, c, o.name) for o, c, d in plans if o.base == candidate.base and c <= cost and d < damage]
            candidate.behind = min(better)[2] if better else ""

    def add_student(self, name: str, scale: dict[str, Any]) -> Candidate | None:
        """A fresh narrower or shallower network; not yet trained.

        Returns:
            The candidate, if it began with most of the teacher's weights and may be narrowed like the teacher.
        """
        what = "student " + ", ".join(f"{k} {v}" for k, v in scale.items())
        candidate = Candidate(name, "student", what, {"scale": scale}, self.settings.rungs)
        candidate.last += self._may_tune(candidate)

        def make() -> None:
            changes = {"scale": scale, "epochs": 0, "control": False, "inherit": True}
            spec = self.distilling.model_copy(update=changes)
            outcome = distill(self.job, spec, data=self.data, teacher=self.teacher, label=name)
            candidate.model = self._of(candidate, outcome, (self.teacher,)).variants[0]
            candidate.inherited = float(outcome.values.get("inherited") or 0.0)
            self._make_forms(candidate, name)

        self._add(candidate, make)
        return candidate if candidate.inherited > _MOST and not candidate.failure else None

    def ask_teachers(self) -> None:
        """Before the first training, so that what the teachers take is not taken for its time.

        A teacher that was brought as an ONNX file teaches nobody but its own int8 file, which asks by itself.
        """
        if self.trials == 0 and self.teacher.format == "torch":
            questions = AskSpec(views=self.distilling.views)
            self.note(ask(self.job, questions, data=self.data, teachers=(self.teacher, *self.others)))

    def advance(self, candidate: Candidate) -> None:
        """Train it one rung further and measure what came of it."""
        with self._lock:
            self.trials += 1
        label = f"{candidate.name}-r{candidate.rung + 1}"
        if candidate.rung < self.settings.rungs:
            self._try(candidate, lambda: self._train(candidate, label))
        else:
            self._try(candidate, lambda: self._tune(candidate))

    def prove_teaching(self, winner: Candidate | None) -> None:
        """Train the winner's structure once more, rung by rung, without the teacher: what did the teacher gain?"""
        if not (self.settings.control and winner and winner.kind != "teacher" and winner.rung):
            return
        trained = min(winner.rung, self.settings.rungs)
        taught = next(s for s in self.steps for v in s.variants if v.name == f"{winner.name}-r{trained}.fp32")
        model: Variant | None = self._untrained(winner)
        for rung in range(trained):
            spec = self._rung_spec(rung, winner).model_copy(update={"alpha": 0.0, "hints": None})
            label = f"{CONTROL}-{winner.name}-r{rung + 1}"
            outcome = self.note(
                distill(self.job, spec, data=self.data, teacher=self.teacher, parent=model, label=label)
            )
            model = outcome.variants[0]
        assert model is not None
        self.steps.append(MadeStep(outcome, (self._untrained(winner),)))
        exported = self.note(export(self.job, self.spec.export, data=self.data, parent=model))
        self.steps.append(MadeStep(exported, (model,)))
        control = self._measure(exported.variant)
        self._extra.append(control)
        store = Store(self.job.store)
        ours, theirs = (
            measurement_of(self._outcomes.get(v.digest, control)) for v in (taught.variants[0], exported.variant)
        )
        scores = [fetch_arrays(store, m.scores)["score"] for m in (ours, theirs)]
        paired = compare_paired(scores[0], scores[1], better=ours.metric.better, reference=theirs.digest)
        low, high = paired.interval
        self.control = {"gain": paired.difference, "low": low, "high": high, "p": paired.p}

    # What the search asks about them

    def cost(self, form: Measurement) -> float:
        """What the objective counts, lower is better: share of the teacher's latency, bytes, or seconds per sample."""
        if self.spec.objective == "size":
            return float(form.bytes)
        return form.latency_share[0] if self.spec.objective == "latency" else 1.0 / form.throughput.value

    def share_of_teacher(self, candidate: Candidate) -> float:
        """What the candidate's fp32 file costs, as a share of the teacher's."""
        return self.cost(candidate.forms[0]) / self.cost(self.baseline_measurement)

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

    def over_budget(self, form: Measurement) -> list[str]:
        """What of the budget the form exceeds by its structure, whatever training does."""
        gates = failing_gates(self.spec.gates, form, self.baseline_measurement)
        return [f"{g.meaning} {g.value:.4g} > {g.limit:g} {g.unit}" for g in gates if g.gate in STRUCTURAL]

    def line(self, candidate: Candidate) -> str:
        """The candidate in a few words."""
        if candidate.failure:
            return f"failed: {candidate.failure}"
        fitting = [m for m in candidate.forms if released(m)]
        if not fitting:
            return "nothing measured"
        form = min(fitting, key=lambda m: (bool(failing_gates(self.spec.gates, m, self.baseline_measurement)),
                                           self.cost(m)))  # fmt: skip
        over = self.over_budget(form)
        return self.line_of(form) if candidate.losses or candidate.kind == "teacher" else (
            f"untrained, {form.p50_ms:.3g} ms, {size_text(form.bytes)}" + (", over the budget" if over else "")
        )  # fmt: skip

    def line_of(self, form: Measurement) -> str:
        """A measured file in a few words."""
        faster = f", {form.speedup.value:.1f}x" if form.speedup else ""
        return f"{form.p50_ms:.3g} ms{faster}, {size_text(form.bytes)}, loss {loss_of(form):+.4f}"

    def made(self, data: Outcome) -> Made:
        """Everything for MLflow, the report and the gates: the latest files of what was trained, and the control."""
        measured = [self.baseline, *(self._outcomes[m.digest] for m in self.forms() if m.digest in self._outcomes)]
        return Made(data, self.data, tuple(self.steps), (*measured, *self._extra))

    # How the work is done

    @property
    def _by_size(self) -> bool:
        return self.spec.objective == "size"

    def _may_tune(self, candidate: Candidate) -> int:
        return int(self.settings.qat and "static" in self.quantizing.methods)

    def _add(self, candidate: Candidate, make: Callable[[], None]) -> None:
        self.candidates.append(candidate)
        self._try(candidate, make)

    def _try(self, candidate: Candidate, work: Callable[[], None]) -> None:
        """A candidate that fails ends alone; what fails everything (the store, a stop) rises."""
        try:
            work()
        except CANDIDATE_FAILURES as error:
            candidate.failure = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            notes = journal.get()
            if notes is not None:
                notes.failures.clear()
        self.latest = candidate

    def _of(self, candidate: Candidate, outcome: Outcome, parents: tuple[Variant, ...]) -> Outcome:
        candidate.seconds += outcome.cost_seconds
        self.note(outcome)
        with self._lock:
            self.steps.append(MadeStep(outcome, parents))
        return outcome

    def _measure(self, variant: Variant) -> Outcome:
        outcome = self.note(
            measure(self.job, self.spec.measure, data=self.data, variant=variant, baseline=self.baseline)
        )
        with self._lock:
            self._outcomes[variant.digest] = outcome
        return outcome

    def _rung_spec(self, rung: int, candidate: Candidate) -> DistillSpec:
        update: dict[str, Any] = {"epochs": self.epochs[rung], "control": False}
        if candidate.kind == "student":
            update["scale"] = candidate.settings["scale"]
        return self.distilling.model_copy(update=update)

    def _untrained(self, candidate: Candidate) -> Variant:
        return next(v for s in self.steps for v in s.variants if v.name == candidate.name and v.format == "torch")

    def _train(self, candidate: Candidate, label: str) -> None:
        assert candidate.model is not None
        parent = candidate.model
        spec = self._rung_spec(candidate.rung, candidate)
        outcome = distill(
            self.job, spec, data=self.data, teacher=self.teacher, parent=parent, others=self.others, label=label
        )
        candidate.training_seconds = outcome.cost_seconds
        candidate.model = self._of(candidate, outcome, (parent, self.teacher)).variants[0]
        if candidate.rung:
            fails = {m.digest: failing_gates(self.spec.gates, m, self.baseline_measurement) for m in candidate.forms}
            candidate.earlier += tuple(m for m in candidate.forms if released(m) and not fails[m.digest])
        candidate.rung += 1
        self._make_forms(candidate, label)
        if candidate.rung == self.settings.rungs and self._only_int8_fails(candidate):
            self._refine(candidate, label)
        candidate.losses.append(min(loss_of(m) for m in candidate.forms))

    def _tune(self, candidate: Candidate) -> None:
        candidate.rung += 1
        assert candidate.float32 is not None
        if candidate.int8 is None:
            candidate.last = candidate.rung
            return
        outcome = qat(
            self.job,
            self.tuning,
            data=self.data,
            parent=candidate.int8,
            teacher=self.teacher,
            float_parent=candidate.float32,
            label=candidate.int8.name.removesuffix(".int8-static"),
        )
        self._of(candidate, outcome, (candidate.int8, self.teacher))
        form = measurement_of(self._measure(outcome.variant))
        candidate.forms = (*candidate.forms, form)
        candidate.losses.append(loss_of(form))

    def _make_forms(self, candidate: Candidate, label: str) -> None:
        assert candidate.model is not None
        outcome = export(self.job, self.spec.export, data=self.data, parent=candidate.model)
        candidate.float32 = self._of(candidate, outcome, (candidate.model,)).variant
        self._measure_forms(candidate, label, [self._measure(candidate.float32)], self._candidate_quantization())

    def _measure_forms(self, candidate: Candidate, label: str, first: list[Outcome], spec: QuantizeSpec) -> None:
        assert candidate.float32 is not None
        quantized = quantize(self.job, spec, data=self.data, parent=candidate.float32)
        self._of(candidate, quantized, (candidate.float32,))
        candidate.int8 = next((v for v in quantized.variants if v.name.endswith(".int8-static")), None)
        outcomes = [*first, *(self._measure(v) for v in quantized.variants)]
        candidate.forms = tuple(map(measurement_of, outcomes))

    def _refine(self, candidate: Candidate, label: str) -> None:
        """Int8 loses too much where fp32 does not: everything that quantization can do without training."""
        assert candidate.float32 is not None
        spec = self.quantizing.model_copy(
            update={
                "methods": ("static",),
                "equalize": True,
                "bias_correction": True,
                "calibration_method": "auto",
                "accuracy_control": {"max_drop": self.spec.gates.margin / 2},
            }
        )
        spec = QuantizeSpec.model_validate(spec.model_dump())
        outcome = quantize(self.job, spec, data=self.data, parent=candidate.float32, label=f"{label}-{_REFINED}")
        self._of(candidate, outcome, (candidate.float32,))
        candidate.forms += tuple(measurement_of(self._measure(v)) for v in outcome.variants)

    def _only_int8_fails(self, candidate: Candidate) -> bool:
        """Whether the static int8 file loses too much and would otherwise be the best, and fp32 loses little."""
        form = next((m for m in candidate.forms if candidate.int8 and m.digest == candidate.int8.digest), None)
        if form is None or self.over_budget(form):
            return False
        fails = {m.digest: failing_gates(self.spec.gates, m, self.baseline_measurement) for m in candidate.forms}
        proven = [self.cost(m) for m in candidate.forms if released(m) and not fails[m.digest]]
        if proven and min(proven) <= self.cost(form):
            return False
        reference = candidate.forms[0].paired
        return bool(fails[form.digest]) and (reference is None or reference.bound <= self.spec.gates.margin)

    def _candidate_quantization(self) -> QuantizeSpec:
        """The methods that may pay: static, which quantization-aware training starts from; int8 weights alone, for
        narrow layers are often fastest in fp32; of the others those that paid for the teacher."""
        teacher = self.candidates[0].forms if self.candidates else ()
        cheap = {m.name.rpartition("int8-")[2] for m in teacher if self.cost(m) < self.cost(teacher[0])}
        methods = tuple(m for m in self.quantizing.methods if m in cheap or m in ("static", "weights8"))
        return self.quantizing.model_copy(update={"methods": methods or self.quantizing.methods})

    def _next_seconds(self, candidate: Candidate) -> float:
        """What the next rung will take, by the latest one: training grows with its epochs."""
        if not candidate.training_seconds or candidate.rung >= self.settings.rungs:
            return candidate.training_seconds
        return candidate.training_seconds * self.epochs[candidate.rung] / self.epochs[candidate.rung - 1]
