"""validate: fix on validation who meets the test split, from the safest to the cheapest, then let the gates look, once.

The test split is seen by these few in turn until the first that fails, by the baseline and by the champion in service,
and by nothing else. The last that passed is released.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from model_registry.measurement import Measurement, PairedComparison
from model_registry.store import Store
from model_registry.variant import Variant
from tasks.evidence.arrays import Array, fetch_arrays
from tasks.evidence.decision import Decision
from tasks.evidence.paired import compare_paired
from tasks.evidence.proportion import loss_bound, samples_needed
from tasks.evidence.scoring import builtin_scores
from tasks.evidence.split_inputs import split_inputs
from tasks.evidence.variant_table import variant_table
from tasks.running.errors import GateFailed
from tasks.running.policy import step
from tasks.running.splits import TARGET, DataRef
from tasks.running.stage import Job, Outcome, Stage
from tasks.running.stage_cache import run_stage
from tasks.validate.choice import choose
from tasks.validate.gate_spec import GateSpec

__all__ = ["STAGE", "GateSpec", "decision_of", "refuse_chance", "refuse_hopeless", "validate"]

STAGE = Stage(
    name="validate",
    pool="checks",
    entry="tasks.validate.gates_child:main",
    libraries=("great-expectations", "onnxruntime", "numpy"),
    seed_matters=False,
    device_matters=False,
    cpu_class_matters=True,
)


@step(STAGE)
def validate(
    job: Job,
    spec: GateSpec,
    *,
    data: DataRef,
    baseline: Measurement,
    candidates: Sequence[Measurement],
    champion: Measurement | None = None,
    predict_batch: int = 1,
) -> Outcome:
    """Choose, test, decide.

    Args:
        baseline: the baseline on validation.
        candidates: every variant that may be released, on validation; the baseline among them is passed over.
        champion: the champion in service, measured on the same validation split (it may be one of the candidates);
            None where there is none.
        predict_batch: as in MeasureSpec.

    Returns:
        The outcome of the cheapest variant that passed; :func:`decision_of` reads it.

    Raises:
        GateFailed: a critical gate refused the first one, so that nothing is proven; the text holds the gates and all
            variants, ``details['decision']`` the decision as JSON (absent where there was no candidate at all).
    """
    store = Store(job.store)
    others = [m for m in candidates if m.digest != baseline.digest]
    choice = choose(spec, others, baseline, _to_champion(store, others, champion))
    inputs = {f"candidate-{n}": store.load_variant(m.digest) for n, m in enumerate(choice.sequence, 1)}
    inputs["baseline"] = store.load_variant(baseline.digest)
    opponent = {"champion": store.load_variant(champion.digest)} if champion else {}
    among = champion is not None and champion.digest in {m.digest for m in choice.sequence}
    extra = {
        "inputs": split_inputs(job, data)["test"].model_dump(mode="json"),
        "sequence": [m.model_dump(mode="json", by_alias=True) for m in choice.sequence],
        "baseline": baseline.model_dump(mode="json", by_alias=True),
        "reason": choice.reason,
        "predict_batch": predict_batch,
    }
    if data.language is not None and data.language.questions is not None:
        extra["questions"] = data.language.questions.model_dump(mode="json")
    try:
        # A champion chosen again has nobody to be compared with, and the answer of its own release is reused.
        first = inputs if among else inputs | opponent
        outcome = run_stage(STAGE, job, spec, data=data, inputs=first, extra=extra)
        if among and champion and decision_of(outcome).chosen != champion.digest:  # another one would replace it
            outcome = run_stage(STAGE, job, spec, data=data, inputs=inputs | opponent, extra=extra)
        return outcome
    except GateFailed as refusal:
        table = variant_table((baseline, *others), failing=choice.failing)
        reason = refusal.details["decision"]["reason"]
        raise GateFailed(
            f"{refusal.message}\n{reason}.\nAll variants, on validation:\n{table}", **refusal.details
        ) from None


def decision_of(outcome: Outcome) -> Decision:
    """The decision in an outcome of :func:`validate`."""
    return Decision.model_validate(outcome.values["decision"])


def refuse_hopeless(spec: GateSpec, data: DataRef) -> None:
    """Refuse a margin that the test split is too small to ever prove; called before anything is trained.

    Only for metrics of right and wrong, where the smallest provable margin is known beforehand.

    Raises:
        GateFailed: names the number of samples needed, and the margin that this split could prove.
    """
    if not (data.metric.builtin and data.metric.name == "accuracy"):
        return
    margins = (
        ("budget.max_accuracy_drop", spec.margin)
        if spec.relative_margin is None
        else ("budget.max_relative_drop", spec.relative_margin),  # of all that a metric of right and wrong can be
        ("gates.champion_margin", spec.champion_margin),
    )
    for split in ("test", "validation"):
        rows = data.split(split).rows
        for key, margin in margins:
            if margin is not None and margin < 1 and loss_bound(0, 0, rows) > margin:
                raise GateFailed(
                    f"{key} {margin:g} can never be proven on the {split} split of {rows} samples: even a variant with "
                    f"the very same answers leaves a 95 % bound of {loss_bound(0, 0, rows):.4f}. It takes at least "
                    f"{samples_needed(margin)} samples (three times as many in practice); bring more, or set {key} "
                    f"to {loss_bound(0, 0, rows):.4f} or more",
                    needed=samples_needed(margin),
                    samples=rows,
                )


def refuse_chance(job: Job, data: DataRef, baseline: Measurement) -> None:
    """Refuse a baseline that knows nothing: whatever is as good as it would be found at once, and be worth as little.

    Only for the built-in metrics, whose value for the best constant answer is known.

    Args:
        baseline: measured on validation.

    Raises:
        GateFailed: the baseline's 95 % interval reaches that of the same answer to every sample.
    """
    if not data.metric.builtin:
        return
    targets = fetch_arrays(Store(job.store), split_inputs(job, data)["validation"])[TARGET]
    low, high = baseline.metric.interval
    if data.metric.name in ("pixel_accuracy", "iou"):
        constant = _of_one_class(data.metric.name, targets, Store(job.store).load_variant(baseline.digest))
    else:
        constant = _CONSTANT[data.metric.name](targets)
    if low <= constant if baseline.metric.better == "higher" else high >= constant:
        raise GateFailed(
            f"the teacher knows nothing yet: its {data.metric.name} on {baseline.samples} validation samples is "
            f"{baseline.metric.value:.4g} (95 % interval {low:.4g} to {high:.4g}); the same answer to all of them "
            f"has {constant:.4g}. Anything small would be as good. Train the teacher longer, or look at its labels, "
            "learning rate and preprocessing",
            constant=constant,
        )


def _of_one_vector(targets: Array) -> float:
    """The mean cosine where every row is answered with the direction that is nearest to all targets [N, features]."""
    lengths = np.linalg.norm(targets.astype(np.float64), axis=1, keepdims=True)
    return float(np.linalg.norm((targets / np.maximum(lengths, 1e-12)).mean(axis=0)))


def _of_frequent_labels(targets: Array) -> float:
    """The mean where every row is given the same labels: the most frequent ones, as many as do best."""
    order = np.argsort(-targets.mean(axis=0), kind="stable")
    found = 0.0
    for most in range(len(order) + 1):
        logits = np.full(targets.shape[1], -1.0)
        logits[order[:most]] = 1.0
        found = max(found, float(builtin_scores("jaccard", np.broadcast_to(logits, targets.shape), targets).mean()))
    return found


_CONSTANT: dict[str, Callable[[Array], float]] = {
    "accuracy": lambda targets: float(np.unique(targets, return_counts=True)[1].max() / targets.size),
    "label_accuracy": lambda targets: float(np.maximum((on := (targets > 0.5).mean(axis=0)), 1 - on).mean()),
    "jaccard": _of_frequent_labels,
    "cosine": _of_one_vector,
    "mse": lambda targets: float(np.var(targets.astype(np.float64), axis=0).mean()),
}
"""What the best of all constant answers has on these targets [N, ...], by metric."""


def _of_one_class(metric: str, targets: Array, model: Variant) -> float:
    """The metric where every place is answered with the class that most of them have."""
    classes = model.outputs[0].shape[1]
    found, counts = np.unique(targets[(targets >= 0) & (targets < classes)], return_counts=True)
    if not len(found):
        return 0.0
    logits = np.zeros((1, classes, *[1] * (targets.ndim - 1)), np.float32)
    logits[:, found[counts.argmax()]] = 1.0
    answers = np.broadcast_to(logits, (len(targets), classes, *targets.shape[1:]))
    return float(builtin_scores(metric, answers, targets).mean())


def _to_champion(
    store: Store, candidates: Sequence[Measurement], champion: Measurement | None
) -> dict[str, PairedComparison]:
    """Each candidate against the champion on validation, by digest; without the champion itself."""
    if champion is None:
        return {}
    reference = fetch_arrays(store, champion.scores)["score"]
    return {
        m.digest: compare_paired(
            fetch_arrays(store, m.scores)["score"], reference, better=m.metric.better, reference=champion.digest
        )
        for m in candidates
        if m.digest != champion.digest
    }
