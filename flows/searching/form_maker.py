"""From a model to files and their measurements: exported, quantized, measured."""

from __future__ import annotations

from dataclasses import dataclass

from flows.searching.appraisal import Appraisal
from flows.searching.candidate import Candidate
from flows.searching.search_setup import SearchSetup
from flows.searching.tally import Tally
from model_registry.variant import Variant
from tasks.export import export
from tasks.measure import measure, measurement_of
from tasks.quantize import QuantizeSpec, quantize
from tasks.running.stage import Outcome

_REFINED = "refined"


@dataclass(frozen=True)
class FormMaker:
    """Makes the files of a candidate as it is now, and measures them."""

    setup: SearchSetup
    tally: Tally
    appraisal: Appraisal

    def of_teacher(self, candidate: Candidate) -> None:
        """The teacher's files: the baseline, and int8 with all that quantization can do where it is needed."""
        candidate.float32 = self.tally.exported
        self._quantize(candidate, [self.tally.baseline], self.setup.quantizing)
        self.refine(candidate, candidate.name)

    def of_model(self, candidate: Candidate, label: str) -> None:
        """The files of the candidate's model; those of its model before are given up."""
        assert candidate.model is not None
        outcome = export(self.setup.job, self.setup.spec.export, data=self.setup.data, parent=candidate.model)
        candidate.float32 = self.tally.add_step(outcome, (candidate.model,), candidate).variant
        self._quantize(candidate, [self.measure(candidate.float32)], self._methods_that_may_pay())

    def refine(self, candidate: Candidate, label: str) -> None:
        """Where int8 alone loses too much: one more file, by everything that quantization can do without training."""
        if not self.appraisal.only_int8_fails(candidate):
            return
        assert candidate.float32 is not None
        spec = self.setup.quantizing.model_copy(
            update={
                "methods": ("static",),
                "equalize": True,
                "bias_correction": True,
                "calibration_method": "auto",
                "accuracy_control": {"max_drop": self.setup.spec.gates.margin / 2},
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

    def _quantize(self, candidate: Candidate, first: list[Outcome], spec: QuantizeSpec) -> None:
        assert candidate.float32 is not None
        quantized = quantize(self.setup.job, spec, data=self.setup.data, parent=candidate.float32)
        self.tally.add_step(quantized, (candidate.float32,), candidate)
        candidate.int8 = next((v for v in quantized.variants if v.name.endswith(".int8-static")), None)
        outcomes = [*first, *(self.measure(v) for v in quantized.variants)]
        candidate.forms = tuple(map(measurement_of, outcomes))

    def _methods_that_may_pay(self) -> QuantizeSpec:
        """Static, which quantization-aware training starts from; int8 weights alone, for narrow layers are often
        fastest in fp32; of the others those that paid for the teacher."""
        spec, cost = self.setup.quantizing, self.appraisal.cost
        teacher = self.tally.candidates[0].forms if self.tally.candidates else ()
        cheap = {m.name.rpartition("int8-")[2] for m in teacher if cost(m) < cost(teacher[0])}
        methods = tuple(m for m in spec.methods if m in cheap or m in ("static", "weights8"))
        return spec.model_copy(update={"methods": methods or spec.methods})
