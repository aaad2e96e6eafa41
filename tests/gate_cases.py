"""Real ONNX files with measurements on validation, for the tests of validate: a baseline, a good one, a bad one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from measured_models import Array, blobs, linear, make_data, make_job, make_variant
from measurements import measured

from model_registry.measurement import Measurement, PairedComparison
from model_registry.store import Store
from model_registry.variant import Variant
from tasks.evidence.arrays import publish_arrays
from tasks.evidence.paired import Scores, compare_paired, summarise_pairs
from tasks.validate import GateSpec, validate
from tasks.workloads.sample_scores import accuracy_scores

VALIDATION_SEED, ROWS = 2, 300
BASE = measured("teacher", p50=4.0, bytes=1000)


def loss(bound: float, reference: str = BASE.digest) -> PairedComparison:
    return PairedComparison(
        reference=reference, samples=500, better=1, worse=2, difference=-0.002, interval=(-0.01, 0.01),
        bound=bound, p=0.5, test="mcnemar",
    )  # fmt: skip


def blob_scores(weights: Array, *, rows: int = ROWS, seed: int = VALIDATION_SEED) -> Scores:
    """Right or wrong, by sample of :func:`blobs`."""
    columns = blobs(rows, seed)
    return accuracy_scores(columns["features"] * 2 @ weights, columns["target"])


def measure_quickly(
    store: Store, variant: Variant, weights: Any, reference: Measurement | None, **costs: Any
) -> Measurement:
    """A measurement with the scores that the weights really have, and latencies of our choice."""
    scores, base = blob_scores(weights), blob_scores(linear())
    return measured(
        variant.name,
        reference,
        digest=variant.digest,
        metric=summarise_pairs(scores, name="accuracy", better="higher"),
        per_class={},
        paired=compare_paired(scores, base, better="higher", reference=reference.digest) if reference else None,
        scores=publish_arrays(store, "scores.npz", score=scores),
        bytes=variant.size,
        **costs,
    )


class Case:
    """A baseline, a good and fast variant and a bad and faster one, all real ONNX files."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.job, self.data = store, make_job(store, folder), make_data(store)
        self.teacher = make_variant(store, "teacher", linear(), width=64)
        self.good = make_variant(store, "good", linear())
        self.bad_weights = linear(noise=1.6, seed=3)
        self.bad = make_variant(store, "bad", self.bad_weights)
        self.baseline = measure_quickly(store, self.teacher, linear(), None, p50=2.0)
        self.candidates = [
            measure_quickly(store, self.good, linear(), self.baseline, p50=1.0),
            measure_quickly(store, self.bad, self.bad_weights, self.baseline, p50=0.5),
        ]

    def run(self, spec: GateSpec, **changes: Any) -> Any:
        arguments: dict[str, Any] = {"data": self.data, "baseline": self.baseline, "candidates": self.candidates}
        arguments |= changes
        return validate.task.fn(self.job, spec, **arguments)
