"""From a model to files: sketched to be timed, or exported, quantized and measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flows.searching.appraisal import Appraisal
from flows.searching.candidate import Candidate
from flows.searching.search_setup import SearchSetup
from flows.searching.tally import Tally
from model_registry.measurement import Clocked
from model_registry.variant import Variant
from tasks.export import export
from tasks.measure import ClockSpec, clock, clocked_in, measure, measurement_of
from tasks.quantize import QuantizeSpec, quantize
from tasks.running.stage import Outcome

_REFINED = "refined"
_SKETCHED = "sketched"
_SIMPLE = ("static", "weights8")
"""Of the teacher both are always measured: where one loses too much, the other is the way out."""
_ALIKE = 1.03
"""Costs that differ less are the same within the noise of a short timing."""
_FEWEST_ROWS = 16
"""Calibration rows of a file that is only timed."""


@dataclass(frozen=True)
class FormMaker:
    """Makes the files of a candidate as it is now, and times or measures them."""

    setup: SearchSetup
    tally: Tally
    appraisal: Appraisal

    def of_teacher(self, candidate: Candidate) -> None:
        """The teacher's files: the baseline, and int8 with all that quantization can do where it is needed."""
        candidate.float32 = parent = self.tally.exported
        quantized = quantize(self.setup.job, self.setup.quantizing, data=self.setup.data, parent=parent)
        self.tally.add_step(quantized, (parent,), candidate)
        candidate.note_methods(quantized)
        candidate.sketches = quantized.variants
        self.clock([candidate])
        candidate.clocked = self._undominated(candidate, always=_SIMPLE)
        paying = [v for v in quantized.variants if v.digest in {c.digest for c in candidate.clocked}]
        self._measure_all(candidate, [self.tally.baseline], paying, quantized.by_role("static"))
        self.refine(candidate, candidate.name)

    def sketch(self, candidate: Candidate) -> None:
        """Files of the candidate's untrained model in each form that may pay, to be timed by :meth:`clock`."""
        assert candidate.model is not None
        exported = self._export(candidate)
        spec = self._methods_that_may_pay().model_copy(
            update={
                "calibration_samples": _FEWEST_ROWS,
                "calibration_method": "minmax",
                "equalize": False,
                "bias_correction": False,
                "accuracy_control": None,
            }
        )
        label = f"{candidate.name}-{_SKETCHED}"
        outcome = quantize(self.setup.job, spec, data=self.setup.data, parent=exported, label=label)
        self.tally.count(outcome, candidate)
        candidate.note_methods(outcome)
        candidate.sketches = (exported, *outcome.variants)

    def clock(self, candidates: Sequence[Candidate]) -> None:
        """Time the sketches of all of them side by side."""
        sketches = [variant for candidate in candidates for variant in candidate.sketches]
        if not sketches:
            return
        outcome = clock(
            self.setup.job,
            ClockSpec(batch=self.setup.spec.measure.batch, luts_below=self.setup.spec.measure.luts_below),
            data=self.setup.data,
            variants=sketches,
            baseline=self.tally.exported,
            label=candidates[0].name + (f"-and-{len(candidates) - 1}" if len(candidates) > 1 else ""),
        )
        self.tally.count(outcome)
        found = clocked_in(outcome)
        for candidate in candidates:
            candidate.clocked = tuple(found[variant.digest] for variant in candidate.sketches)

    def of_model(self, candidate: Candidate, *, last: bool = False) -> None:
        """The files of the candidate's trained model, measured; those of its model before are given up.

        Args:
            last: this was its last training: fp32 is measured too, though int8 weights answer all but the same.
        """
        candidate.float32 = self._export(candidate)
        spec = self._methods_that_may_pay()
        kept = {c.digest for c in self._undominated(candidate, always=("weights8",))}
        paying = tuple(m for m in spec.methods if not kept or candidate.by_method(m) & kept)
        spec = spec.model_copy(update={"methods": paying or spec.methods})
        whole = last or "weights8" not in spec.methods
        self._quantize(candidate, [self.measure(candidate.float32)] if whole else [], spec)

    def refine(self, candidate: Candidate, label: str) -> None:
        """Where int8 alone loses too much: one more file, by everything that quantization can do without training."""
        if not self.appraisal.only_int8_fails(candidate):
            return
        assert candidate.float32 is not None
        circuits = self.setup.spec.gates.max_luts is not None
        spec = self.setup.quantizing.model_copy(
            update={
                "methods": ("static",),
                "max_bytes": None,
                "equalize": True,
                "bias_correction": True,
                "calibration_method": "auto",
                # What stays in fp32 becomes no circuit.
                "accuracy_control": None if circuits else {"max_drop": self.appraisal.gates.margin / 2},
            }
        )
        spec = QuantizeSpec.model_validate(spec.model_dump())
        parent = candidate.float32
        outcome = quantize(self.setup.job, spec, data=self.setup.data, parent=parent, label=f"{label}-{_REFINED}")
        self.tally.add_step(outcome, (parent,), candidate)
        candidate.forms += tuple(measurement_of(self.measure(v)) for v in outcome.variants)

    def measure(self, variant: Variant) -> Outcome:
        """The file beside the baseline."""
        setup = self.setup
        outcome = measure(setup.job, setup.spec.measure, data=setup.data, variant=variant, baseline=self.tally.baseline)
        return self.tally.add_measured(variant, outcome)

    def _export(self, candidate: Candidate) -> Variant:
        assert candidate.model is not None
        outcome = export(self.setup.job, self.setup.spec.export, data=self.setup.data, parent=candidate.model)
        return self.tally.add_step(outcome, (candidate.model,), candidate).variant

    def _quantize(self, candidate: Candidate, first: list[Outcome], spec: QuantizeSpec) -> None:
        assert candidate.float32 is not None
        quantized = quantize(self.setup.job, spec, data=self.setup.data, parent=candidate.float32)
        self.tally.add_step(quantized, (candidate.float32,), candidate)
        candidate.note_methods(quantized)
        self._measure_all(candidate, first, quantized.variants, quantized.by_role("static"))

    def _measure_all(
        self, candidate: Candidate, first: list[Outcome], variants: Sequence[Variant], int8: Variant | None
    ) -> None:
        candidate.int8 = int8
        candidate.forms = tuple(map(measurement_of, [*first, *(self.measure(v) for v in variants)]))

    def _undominated(self, candidate: Candidate, always: tuple[str, ...]) -> tuple[Clocked, ...]:
        """What was timed of it, without files that another one beats, or equals within the noise, in time and bytes:
        nobody need ask them. The time is the one that is counted: per sample for throughput, else the latency, for a
        budget may limit that whatever the objective is.

        Args:
            always: the methods of those that stay all the same.
        """
        by_throughput = self.setup.spec.objective == "throughput"

        def time(file: Clocked) -> float:
            return self.appraisal.cost(file) if by_throughput else file.latency_share[0]

        kept = [c for c in candidate.clocked if c.digest in candidate.by_method(*always)]
        for form in sorted(candidate.clocked, key=lambda c: (c.bytes, time(c), c.digest)):
            limit = _ALIKE * time(form)
            if form not in kept and not any(k.bytes <= form.bytes and time(k) <= limit for k in kept):
                kept.append(form)
        return tuple(kept)

    def _methods_that_may_pay(self) -> QuantizeSpec:
        """Static, which quantization-aware training starts from; int8 weights alone, for narrow layers are often
        fastest in fp32; of the others those that paid for the teacher."""
        spec, cost = self.setup.quantizing, self.appraisal.cost
        teacher = self.tally.candidates[0]
        cheap = {form.digest for form in teacher.forms if cost(form) < cost(teacher.forms[0])}
        methods = tuple(m for m in spec.methods if m in _SIMPLE or teacher.by_method(m) & cheap)
        return spec.model_copy(update={"methods": methods or spec.methods})
