"""What a search was given, its defaults filled in."""

from __future__ import annotations

import os
from dataclasses import dataclass

from flows.searching.budget_spec import SearchSpec
from flows.searching.candidate import Candidate
from flows.spec import PipelineSpec
from model_registry.variant import Variant
from tasks.distill import DistillSpec
from tasks.prune import PruneSpec
from tasks.qat import QatSpec
from tasks.quantize import QuantizeSpec
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Outcome


@dataclass(frozen=True)
class SearchSetup:
    """The run, its spec (with a ``search``), the checked data, the outcome that made the teacher, and more teachers."""

    job: Job
    spec: PipelineSpec
    data: DataRef
    trained: Outcome
    others: tuple[Variant, ...] = ()

    @classmethod
    def of(
        cls, job: Job, spec: PipelineSpec, data: DataRef, trained: Outcome, others: tuple[Variant, ...]
    ) -> SearchSetup:
        """The same with the cores shared out among the trainings that run at a time."""
        if spec.search is not None and spec.search.parallel > 1:
            cores = len(os.sched_getaffinity(0))
            job = job.model_copy(update={"threads": max(1, cores // spec.search.parallel)})
        return cls(job, spec, data, trained, others)

    @property
    def settings(self) -> SearchSpec:
        assert self.spec.search is not None
        return self.spec.search

    @property
    def teacher(self) -> Variant:
        return self.trained.variant

    @property
    def by_size(self) -> bool:
        """Whether the objective is the size of the file."""
        return self.spec.objective == "size"

    @property
    def distilling(self) -> DistillSpec:
        return self.spec.distill or DistillSpec()

    @property
    def pruning(self) -> PruneSpec:
        return self.spec.prune or PruneSpec()

    @property
    def quantizing(self) -> QuantizeSpec:
        return self.spec.quantize or QuantizeSpec(methods=("static", "dynamic", "weights8"))

    @property
    def tuning(self) -> QatSpec:
        return self.spec.qat or QatSpec()

    def says(self, key: str) -> bool:
        """Whether the spec itself says this about distillation; what it does not say is the search's to decide."""
        return self.spec.distill is not None and key in self.spec.distill.model_fields_set

    def rungs_of(self, candidate: Candidate) -> int:
        """Trainings of its whole model that a candidate may have, quantization-aware training not among them."""
        return self.settings.rungs + candidate.longer

    @property
    def trainings(self) -> int:
        """That a candidate may have: the rungs, and quantization-aware training where there is an int8 file; not where
        scales must be powers of two, which it does not learn."""
        tuned = self.settings.qat and "static" in self.quantizing.methods and self.quantizing.scales == "any"
        return self.settings.rungs + int(tuned)
