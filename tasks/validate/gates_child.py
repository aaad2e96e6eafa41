"""The one use of the test split: chosen, baseline and champion predict it, and the gates look at the result."""

from __future__ import annotations

import threading

from model_registry.manifest import FileEntry
from model_registry.measurement import Measurement, PairedComparison
from model_registry.variant import Variant
from tasks.evidence.arrays import Array, fetch_arrays
from tasks.evidence.decision import Decision, Scored
from tasks.evidence.flipped import publish_flips
from tasks.evidence.paired import Scores, compare_paired, summarise_pairs
from tasks.evidence.predicting import predict_file
from tasks.evidence.scoring import per_class, score
from tasks.running.child import Child, Result
from tasks.running.errors import GateFailed
from tasks.running.splits import TARGET
from tasks.validate.gate_rows import gate_rows
from tasks.validate.gate_spec import GateSpec


def main(child: Child) -> Result:
    """Return the decision, or raise it.

    Raises:
        GateFailed: a critical gate refused; the text holds the gates, ``details['decision']`` everything.
    """
    # Great Expectations takes three seconds to import; the predictions run in processes of their own meanwhile.
    importing = threading.Thread(target=_import_expectations, daemon=True)
    importing.start()
    spec = GateSpec.model_validate(child.spec)
    scored, samples, flips = _score(child)
    importing.join()

    from tasks.validate.expectations_of_gates import run_gates

    child.progress(0.8, "checking the gates")
    costs = Measurement.model_validate(child.extra["measurement"])
    rows = gate_rows(spec, scored["chosen"], scored["baseline"], costs)
    gates = run_gates(costs.name, rows)
    refused = any(not gate.passed and gate.severity == "critical" for gate in gates)
    decision = Decision(
        status="refused" if refused else "passed",
        chosen=scored["chosen"].digest,
        baseline=scored["baseline"].digest,
        champion=child.extra["champion"],
        reason=child.extra["reason"],
        samples=samples,
        scored=tuple(scored.values()),
        gates=gates,
        flips=flips,
    )
    document = decision.model_dump(mode="json", by_alias=True)
    if refused:
        raise GateFailed(
            f"{costs.name} is refused on the test split ({samples} samples):\n{decision.gate_table()}",
            decision=document,
        )
    return Result(values={"decision": document}, files=(flips,) if flips else ())


def _score(child: Child) -> tuple[dict[str, Scored], int, FileEntry | None]:
    """Score each role's variant on the test split, chosen compared with the two others; and what flipped."""
    data = child.data
    arrays = fetch_arrays(child.store, FileEntry.model_validate(child.extra["inputs"]))
    targets, batch = arrays[TARGET], child.extra["predict_batch"]
    by_digest: dict[str, Scores] = {}
    answers: dict[str, Array] = {}
    for step, (role, variant) in enumerate(child.inputs.items()):
        if variant.digest not in by_digest:
            child.progress(0.1 + 0.2 * step, f"{role} {variant.name} predicts the test split")
            outputs = predict_file(child.store, variant, arrays, child.workdir, batch=batch)
            by_digest[variant.digest] = score(data, child.job.workload, outputs, targets, name=variant.name)
            answers[role] = outputs

    def paired(variant: Variant, other: str) -> PairedComparison | None:
        reference = child.inputs.get(other)
        if reference is None or reference.digest == variant.digest:
            return None
        return compare_paired(
            by_digest[variant.digest],
            by_digest[reference.digest],
            better=data.metric.better,
            reference=reference.digest,
        )

    found = {
        role: Scored(
            digest=variant.digest,
            name=variant.name,
            role=role,
            metric=summarise_pairs(by_digest[variant.digest], name=data.metric.name, better=data.metric.better),
            per_class=per_class(data, by_digest[variant.digest], targets),
            to_baseline=paired(variant, "baseline"),
            to_champion=paired(variant, "champion") if role == "chosen" else None,
        )
        for role, variant in child.inputs.items()
    }
    flips = None
    if "baseline" in answers:  # absent where the baseline itself was chosen
        chosen, baseline = child.inputs["chosen"], child.inputs["baseline"]
        flips = publish_flips(
            child.store,
            scores=(by_digest[chosen.digest], by_digest[baseline.digest]),
            outputs=(answers["chosen"], answers["baseline"]),
            targets=targets,
            inputs={spec.name: arrays[spec.name] for spec in baseline.inputs},
            better=data.metric.better,
        )
    return found, len(targets), flips


def _import_expectations() -> None:
    import tasks.validate.expectations_of_gates  # noqa: F401
