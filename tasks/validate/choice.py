"""Which variants go to the gates, in which order: chosen on validation, never on the test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model_registry.measurement import Measurement, Objective, PairedComparison
from model_registry.sizes import size_text
from tasks.evidence.decision import GateRow, Scored
from tasks.running.errors import GateFailed
from tasks.validate.gate_rows import gate_rows
from tasks.validate.gate_spec import GateSpec
from tasks.validate.sequence import cost_of_objective, fixed_sequence, front_sequence


@dataclass(frozen=True)
class Choice:
    """Who is wanted most and why, who meets the test split in which order, from the safest on, and the gates that each
    candidate would fail on validation, by digest."""

    chosen: Measurement
    sequence: tuple[Measurement, ...]
    reason: str
    failing: dict[str, tuple[str, ...]]


def choose(
    spec: GateSpec,
    candidates: Sequence[Measurement],
    baseline: Measurement,
    to_champion: Mapping[str, PairedComparison],
) -> Choice:
    """Choose among measurements on validation.

    1. A candidate is in the race if every critical gate that the test split will apply holds on validation.
    2. The best of these by :func:`best_of` meets the test split last, safer ones before it
       (:func:`tasks.validate.sequence.fixed_sequence`); with objective front the whole front does.
    3. Nobody in the race: the baseline where ``allow_baseline`` says so; else the candidate that exceeds its margin
       least goes to the gates, which will most likely refuse it and say why. Each goes alone.

    Args:
        candidates: compressed variants; the baseline is not one of them.
        to_champion: comparison with the champion on validation, by digest; empty where there is no champion.

    Raises:
        GateFailed: no candidates, and the baseline is not allowed.
    """
    reference = scored(baseline, role="baseline")
    rows = {
        m.digest: gate_rows(
            spec,
            scored(m, role="chosen", to_champion=to_champion.get(m.digest)),
            reference,
            m,
            baseline_costs=baseline,
        )
        for m in candidates
    }
    failing = {digest: _failed(gates) for digest, gates in rows.items()}
    passing = [m for m in candidates if not failing[m.digest]]
    if passing:
        best, why = best_of(spec.objective, passing)
        front = spec.objective == "front"
        margin = spec.resolved(baseline.metric.value).margin
        sequence = front_sequence(passing, margin) if front else fixed_sequence(spec.objective, passing, best, margin)
        on_front = f", {len(sequence)} of them on the front" if front else ""
        why = f"{len(passing)} of {len(candidates)} variants pass on validation{on_front}; {why}"
        return Choice(best, sequence, why, failing)
    if not candidates and not spec.allow_baseline:
        raise GateFailed(
            "there is no compressed variant to choose from: add distill, prune or quantize to the spec, "
            "or set gates.allow_baseline to release the baseline itself"
        )
    if spec.allow_baseline:
        kept = "no compressed variant passes on validation, and gates.allow_baseline is set"
        return Choice(baseline, (baseline,), kept, failing)
    best = min(candidates, key=lambda m: (_excess(rows[m.digest]), m.latency_share, m.digest))
    return Choice(
        best,
        (best,),
        f"no variant passes on validation; {best.name} comes nearest (fails {', '.join(failing[best.digest])})",
        failing,
    )


def best_of(objective: Objective, passing: Sequence[Measurement]) -> tuple[Measurement, str]:
    """The best of at least one measurement, and why.

    ``latency``: the lowest median as a share of the baseline's, from interleaved rounds; those whose interval overlaps
    the fastest one's cannot be told apart by speed, and among them the smallest file wins. ``size``: the smallest file,
    then the lowest latency. ``throughput``: most samples per second. ``both`` and ``front``: the lowest product of
    latency and size.
    """
    if objective in ("both", "front"):
        best = min(passing, key=lambda m: (cost_of_objective(objective, m), m.digest))
        return best, f"{best.name} is the best at speed and size together"
    if objective == "size":
        best = min(passing, key=lambda m: (m.bytes, m.latency_share, m.digest))
        return best, f"{best.name} has the smallest file ({size_text(best.bytes)})"
    if objective == "throughput":
        best = max(passing, key=lambda m: (m.throughput.value, -m.bytes, m.digest))
        return best, f"{best.name} answers most samples per second ({best.throughput.value:.4g})"
    fastest = min(passing, key=lambda m: (m.latency_share, m.digest))
    limit = fastest.latency_share[1][1]
    level = [m for m in passing if m.latency_share[1][0] <= limit]
    best = min(level, key=lambda m: (m.bytes, m.latency_share, m.digest))
    if len(level) == 1:
        return best, f"{best.name} is the fastest (p50 {best.p50_ms:.3g} ms)"
    return best, f"{len(level)} of them are equally fast within noise, and {best.name} is the smallest of these"


def failing_gates(spec: GateSpec, candidate: Measurement, baseline: Measurement) -> tuple[GateRow, ...]:
    """The critical gates that a candidate fails on validation, the comparison with a champion left out."""
    variant, reference = scored(candidate, role="chosen"), scored(baseline, role="baseline")
    rows = gate_rows(spec, variant, reference, candidate, baseline_costs=baseline)
    return tuple(row for row in rows if row.severity == "critical" and not row.within)


def scored(measurement: Measurement, *, role: str, to_champion: PairedComparison | None = None) -> Scored:
    """The part of a measurement that gates look at."""
    return Scored(
        digest=measurement.digest,
        name=measurement.name,
        role=role,
        metric=measurement.metric,
        bits_per_byte=measurement.bits_per_byte,
        per_class=measurement.per_class,
        class_losses=measurement.class_losses,
        to_baseline=measurement.paired,
        to_champion=to_champion,
    )


def _failed(rows: Sequence[GateRow]) -> tuple[str, ...]:
    return tuple(row.gate for row in rows if row.severity == "critical" and not row.within)


def _excess(rows: Sequence[GateRow]) -> float:
    """By how much the worst critical gate is exceeded, relative to its limit."""
    return max(
        (
            (row.value - row.limit if row.at_most else row.limit - row.value) / max(abs(row.limit), 1e-12)
            for row in rows
            if row.severity == "critical"
        ),
        default=0.0,
    )
