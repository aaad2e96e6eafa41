"""The one use of the test split: a fixed sequence of variants meets the gates, in turn, until the first that fails."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from model_registry.decoder_form import TOKENS
from model_registry.manifest import FileEntry
from model_registry.measurement import Measurement
from model_registry.store import Store
from model_registry.variant import Variant
from tasks.evidence.arrays import Array, fetch_arrays
from tasks.evidence.choice_scores import right_answers
from tasks.evidence.decision import Decision, GateResult, GateRow, Scored, SequenceMember
from tasks.evidence.flipped import publish_flips
from tasks.evidence.paired import Scores
from tasks.evidence.predicting import predict_file
from tasks.evidence.scoring import counted_rows, score
from tasks.evidence.split_gap import SplitGap, split_gap
from tasks.evidence.text_bytes import bits_per_byte
from tasks.running.child import Child, Result
from tasks.running.errors import GateFailed
from tasks.running.splits import TARGET
from tasks.validate.choice import best_of
from tasks.validate.gate_rows import gate_rows
from tasks.validate.gate_spec import GateSpec
from tasks.validate.scored_roles import scored_roles
from tasks.validate.sequence import passed_in_order
from tasks.workloads.choice_questions import ChoiceRows


def main(child: Child) -> Result:
    """Return the decision about the last variant that passed (of a front the best one), or raise the one about the
    first.

    Raises:
        GateFailed: a critical gate refused the first variant; the text holds the gates, ``details['decision']``
            everything.
    """
    # Great Expectations takes three seconds to import; the predictions run in processes of their own meanwhile.
    importing = threading.Thread(target=_import_expectations, daemon=True)
    importing.start()
    spec, costs = GateSpec.model_validate(child.spec), Measurement.model_validate(child.extra["baseline"])
    members = [Measurement.model_validate(m) for m in child.extra["sequence"]]
    split = _TestSplit(child, fetch_arrays(child.store, FileEntry.model_validate(child.extra["inputs"])))
    others = {role: variant for role, variant in child.inputs.items() if role in ("baseline", "champion")}
    for role, variant in others.items():
        split.ask(variant, role)

    trials: list[_Trial] = []

    def passes(member: Measurement) -> bool:
        variant = child.inputs[f"candidate-{len(trials) + 1}"]
        split.ask(variant, "the candidate")
        importing.join()
        roles = {"chosen": variant, **others}
        scored = scored_roles(roles, split.scores, split.targets, child.data, bits=split.bits, answers=split.answers)
        rows = gate_rows(spec, scored["chosen"], scored["baseline"], member, baseline_costs=costs)
        gates = _run_gates(member.name, rows)
        gap = _gap(child, split, member, costs)
        trials.append(_Trial(variant, scored, gates, gap))
        return not trials[-1].failed

    passed = passed_in_order(members, passes)
    proven, last = members[:passed], max(0, passed - 1)
    on_front = spec.objective == "front"
    final = trials[members.index(best_of(spec.objective, proven)[0]) if on_front and proven else last]
    flips = _publish_flips(child, split, final.variant)
    decision = Decision(
        status="passed" if passed else "refused",
        chosen=final.variant.digest,
        baseline=costs.digest,
        champion=_opponent(others, final.variant),
        reason=_reason(child.extra["reason"], members, passed, on_front, final.variant.name),
        samples=len(split.scores[final.variant.digest]),
        scored=tuple(final.scored.values()),
        gates=final.gates,
        flips=flips,
        sequence=tuple(_member(m, trials[n] if n < len(trials) else None) for n, m in enumerate(members)),
        front=tuple(m.digest for m in proven) if on_front else (),
    )
    document = decision.model_dump(mode="json", by_alias=True)
    if not passed:
        raise GateFailed(
            f"{members[0].name} is refused on the test split ({decision.samples} samples):\n{decision.gate_table()}",
            decision=document,
        )
    return Result(values={"decision": document}, files=(flips,) if flips else ())


@dataclass
class _TestSplit:
    """The split, and what was answered to it so far, by digest: two roles may have the same variant."""

    child: Child
    arrays: dict[str, Array]
    outputs: dict[str, Array] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)
    bits: dict[str, float | None] = field(default_factory=dict)
    """Of a language model: for each byte of text."""
    answers: dict[str, tuple[Scores, Scores]] = field(default_factory=dict)
    """To the questions, if there are any."""

    @property
    def targets(self) -> Array:
        return self.arrays[TARGET]

    def ask(self, variant: Variant, role: str) -> None:
        """Let the variant predict the split, unless it has."""
        if variant.digest in self.outputs:
            return
        child, done = self.child, len(self.outputs)
        child.progress(0.1 + 0.8 * done / (len(child.inputs) + 1), f"{role} {variant.name} predicts the test split")
        batch = child.extra["predict_batch"]
        outputs = predict_file(child.store, variant, self.arrays, child.workdir, batch=batch)
        self.scores[variant.digest] = score(child.data, child.job.workload, outputs, self.targets, name=variant.name)
        self.outputs[variant.digest] = outputs
        if TOKENS in self.arrays:
            self.bits[variant.digest] = bits_per_byte(child.store, variant, outputs, self.arrays[TOKENS])
        if (rows := self._questions) is not None:
            child.progress(
                0.1 + 0.8 * (done + 0.5) / (len(child.inputs) + 1), f"{role} {variant.name} is asked questions"
            )
            said = predict_file(child.store, variant, {TOKENS: rows.tokens}, child.workdir / "questions", batch=batch)
            self.answers[variant.digest] = right_answers(rows, said)

    @cached_property
    def _questions(self) -> ChoiceRows | None:
        stored = self.child.extra.get("questions")
        return ChoiceRows(**fetch_arrays(self.child.store, FileEntry.model_validate(stored))) if stored else None


@dataclass(frozen=True)
class _Trial:
    """A member that was asked, and what the gates said."""

    variant: Variant
    scored: dict[str, Scored]
    gates: tuple[GateResult, ...]
    gap: SplitGap | None

    @property
    def failed(self) -> tuple[str, ...]:
        return tuple(gate.gate for gate in self.gates if not gate.passed and gate.severity == "critical")


def _member(costs: Measurement, trial: _Trial | None) -> SequenceMember:
    return SequenceMember(
        name=costs.name,
        digest=costs.digest,
        bytes=costs.bytes,
        speedup=costs.speedup.value if costs.speedup else None,
        validation=costs.paired,
        test=trial.scored["chosen"].to_baseline if trial else None,
        verdict="not asked" if trial is None else "failed" if trial.failed else "passed",
        failed=trial.failed if trial else (),
        gap=trial.gap if trial else None,
    )


def _gap(child: Child, split: _TestSplit, member: Measurement, baseline: Measurement) -> SplitGap | None:
    """Between the member's losses on validation and on the test split; None for the baseline itself."""
    if member.digest == baseline.digest:
        return None
    worse = -1.0 if child.data.metric.better == "higher" else 1.0
    before = _stored(child.store, member) - _stored(child.store, baseline)
    return split_gap(worse * before, worse * (split.scores[member.digest] - split.scores[baseline.digest]))


def _stored(store: Store, measurement: Measurement) -> Scores:
    return fetch_arrays(store, measurement.scores)["score"]


def _opponent(others: Mapping[str, Variant], final: Variant) -> str | None:
    champion = others.get("champion")
    return None if champion is None or champion.digest == final.digest else champion.digest


def _reason(reason: str, members: Sequence[Measurement], passed: int, on_front: bool, released: str) -> str:
    """Why it is this one, the test split's answer included."""
    if passed == len(members) or len(members) == 1:
        return reason
    if passed == 0:
        return (
            f"{reason}; {members[0].name}, the safest of the {len(members)} that were to meet the test split in turn, "
            "did not pass, so the others were not asked"
        )
    best = "best" if on_front else "cheapest"
    return f"{reason}; on the test split {members[passed].name} did not pass, and {released} is the {best} that did"


def _publish_flips(child: Child, split: _TestSplit, chosen: Variant) -> FileEntry | None:
    """What the chosen one and the baseline answer differently; None where they are the same one."""
    baseline = child.inputs["baseline"]
    if chosen.digest == baseline.digest:
        return None
    return publish_flips(
        child.store,
        scores=(split.scores[chosen.digest], split.scores[baseline.digest]),
        outputs=(split.outputs[chosen.digest], split.outputs[baseline.digest]),
        targets=split.targets,
        inputs={spec.name: split.arrays[spec.name] for spec in baseline.inputs},
        better=child.data.metric.better,
        counted=counted_rows(child.data, child.job.workload, split.targets),
    )


def _import_expectations() -> None:
    import tasks.validate.expectations_of_gates  # noqa: F401


def _run_gates(name: str, rows: Sequence[GateRow]) -> tuple[GateResult, ...]:
    from tasks.validate.expectations_of_gates import run_gates

    return run_gates(name, rows)
