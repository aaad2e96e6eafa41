"""The one use of the test split: chosen, baseline and champion predict it, and the gates look at the result."""

from __future__ import annotations

import threading

from model_registry.manifest import FileEntry
from model_registry.measurement import Measurement
from tasks.evidence.arrays import Array, fetch_arrays
from tasks.evidence.decision import Decision
from tasks.evidence.flipped import publish_flips
from tasks.evidence.paired import Scores
from tasks.evidence.predicting import predict_file
from tasks.evidence.scoring import score
from tasks.running.child import Child, Result
from tasks.running.errors import GateFailed
from tasks.running.splits import TARGET
from tasks.validate.gate_rows import gate_rows
from tasks.validate.gate_spec import GateSpec
from tasks.validate.scored_roles import scored_roles


def main(child: Child) -> Result:
    """Return the decision, or raise it.

    Raises:
        GateFailed: a critical gate refused; the text holds the gates, ``details['decision']`` everything.
    """
    # Great Expectations takes three seconds to import; the predictions run in processes of their own meanwhile.
    importing = threading.Thread(target=_import_expectations, daemon=True)
    importing.start()
    spec, costs = GateSpec.model_validate(child.spec), Measurement.model_validate(child.extra["measurement"])
    arrays = fetch_arrays(child.store, FileEntry.model_validate(child.extra["inputs"]))
    outputs = _predict(child, arrays)
    scores = _score(child, outputs, arrays[TARGET])
    importing.join()

    from tasks.validate.expectations_of_gates import run_gates

    scored = scored_roles(child.inputs, scores, arrays[TARGET], child.data)
    child.progress(0.8, "checking the gates")
    gates = run_gates(costs.name, gate_rows(spec, scored["chosen"], scored["baseline"], costs))
    refused = any(not gate.passed and gate.severity == "critical" for gate in gates)

    flips = _publish_flips(child, scores, outputs, arrays)
    decision = Decision(
        status="refused" if refused else "passed",
        chosen=scored["chosen"].digest,
        baseline=scored["baseline"].digest,
        champion=child.extra["champion"],
        reason=child.extra["reason"],
        samples=len(arrays[TARGET]),
        scored=tuple(scored.values()),
        gates=gates,
        flips=flips,
    )
    document = decision.model_dump(mode="json", by_alias=True)
    if refused:
        raise GateFailed(
            f"{costs.name} is refused on the test split ({decision.samples} samples):\n{decision.gate_table()}",
            decision=document,
        )
    return Result(values={"decision": document}, files=(flips,) if flips else ())


def _predict(child: Child, arrays: dict[str, Array]) -> dict[str, Array]:
    """What each variant answers to the test split, by digest: two roles may have the same one."""
    outputs: dict[str, Array] = {}
    for step, (role, variant) in enumerate(child.inputs.items()):
        if variant.digest not in outputs:
            child.progress(0.1 + 0.2 * step, f"{role} {variant.name} predicts the test split")
            batch = child.extra["predict_batch"]
            outputs[variant.digest] = predict_file(child.store, variant, arrays, child.workdir, batch=batch)
    return outputs


def _score(child: Child, outputs: dict[str, Array], targets: Array) -> dict[str, Scores]:
    names = {variant.digest: variant.name for variant in reversed(child.inputs.values())}
    return {
        digest: score(child.data, child.job.workload, answers, targets, name=names[digest])
        for digest, answers in outputs.items()
    }


def _publish_flips(
    child: Child, scores: dict[str, Scores], outputs: dict[str, Array], arrays: dict[str, Array]
) -> FileEntry | None:
    """What the chosen one and the baseline answer differently; None where they are the same one."""
    chosen, baseline = child.inputs["chosen"], child.inputs["baseline"]
    if chosen.digest == baseline.digest:
        return None
    return publish_flips(
        child.store,
        scores=(scores[chosen.digest], scores[baseline.digest]),
        outputs=(outputs[chosen.digest], outputs[baseline.digest]),
        targets=arrays[TARGET],
        inputs={spec.name: arrays[spec.name] for spec in baseline.inputs},
        better=child.data.metric.better,
    )


def _import_expectations() -> None:
    import tasks.validate.expectations_of_gates  # noqa: F401
