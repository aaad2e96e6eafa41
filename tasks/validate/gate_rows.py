"""The gates as rows of numbers and limits."""

from __future__ import annotations

import math

from model_registry.measurement import Clocked, Measurement
from tasks.evidence.class_loss import fewest_samples
from tasks.evidence.decision import GateRow, Scored
from tasks.evidence.mean_bound import FEWEST
from tasks.evidence.search_summary import NO_CIRCUIT
from tasks.validate.gate_spec import GateSpec

FEWEST_QUESTIONS = 1000
"""With so many a 95 % interval of the share of right answers is about six points wide."""
_SPEEDUP = "speed-up over the baseline, lower end of the 95 % interval"


def gate_rows(
    spec: GateSpec, variant: Scored, baseline: Scored, costs: Measurement, *, baseline_costs: Measurement
) -> tuple[GateRow, ...]:
    """Every gate that applies to the variant.

    Args:
        baseline: on the same split as the variant; a relative margin is a share of its metric.
        costs: the variant's measurement (latency and size on this machine).
        baseline_costs: the baseline's.
    """
    spec = spec.resolved(baseline.metric.value)
    name, higher = variant.metric.name, variant.metric.better == "higher"
    rows: list[GateRow] = []
    for gate, paired, margin in (
        ("non_inferior_to_baseline", variant.to_baseline, spec.margin),
        ("non_inferior_to_champion", variant.to_champion, spec.margin_to_champion),
    ):
        if paired is not None:
            other = gate.rpartition("_")[2]
            meaning = f"95 % bound of the loss of {name} against the {other}, same {paired.samples} samples"
            rows.append(GateRow(gate=gate, meaning=meaning, value=paired.bound, limit=margin, unit="loss"))
    if spec.floor is not None:
        value = variant.metric.value
        rows.append(
            GateRow(gate="floor", meaning=name, value=value, limit=spec.floor, unit="metric", at_most=not higher)
        )
    rows += [*_class_rows(spec, variant), *_sample_rows(variant)]
    rows += [*_choice_rows(spec, variant), *_token_rows(spec, costs, baseline_costs)]
    rows += structural_rows(spec, costs, baseline_costs=baseline_costs)
    if costs.speedup is not None and spec.min_speedup is None:
        # Not everybody compresses for speed, so this one only warns.
        low = costs.speedup.interval[0]
        rows.append(
            GateRow(
                gate="faster", meaning=_SPEEDUP, value=low, limit=1.0, unit="ratio", at_most=False, severity="warning"
            )
        )
    return tuple(rows)


def structural_rows(
    spec: GateSpec, costs: Measurement | Clocked, *, baseline_costs: Measurement
) -> tuple[GateRow, ...]:
    """The gates that a file's structure alone decides, trained or not: those of STRUCTURAL."""
    rows: list[GateRow] = []
    if spec.max_p95_ms is not None:
        meaning = f"95th percentile latency, batch {costs.batch}: the baseline's times the share in turns with it"
        value = costs.p95_beside(baseline_costs)
        rows.append(GateRow(gate="latency", meaning=meaning, value=value, limit=spec.max_p95_ms, unit="ms"))
    if spec.max_bytes is not None:
        rows.append(GateRow(gate="size", meaning="model file", value=costs.bytes, limit=spec.max_bytes, unit="bytes"))
    if spec.min_speedup is not None:
        low = costs.speedup.interval[0] if costs.speedup else 1.0  # the baseline is as fast as itself
        limit = spec.min_speedup
        rows.append(GateRow(gate="speedup", meaning=_SPEEDUP, value=low, limit=limit, unit="ratio", at_most=False))
    if spec.min_shrink is not None:
        meaning, ratio = "size of the baseline's file over this one's", baseline_costs.bytes / costs.bytes
        limit = spec.min_shrink
        rows.append(GateRow(gate="shrink", meaning=meaning, value=ratio, limit=limit, unit="ratio", at_most=False))
    if spec.max_luts is not None:
        value = math.nan if costs.luts is None else costs.luts
        meaning = "look-up tables of an FPGA, about" if costs.luts is not None else NO_CIRCUIT
        rows.append(GateRow(gate="fpga", meaning=meaning, value=value, limit=spec.max_luts, unit="LUTs"))
    return tuple(rows)


def _token_rows(spec: GateSpec, costs: Measurement, baseline_costs: Measurement) -> list[GateRow]:
    """How fast a text is continued; the number is missing, which no gate lets pass, where it was not measured."""
    speed, reference = costs.token_speed, baseline_costs.token_speed
    rows = list[GateRow]()
    if spec.min_tokens_per_second is not None:
        meaning = "tokens of an answer per second: the baseline's, times the speed-up in turns with it"
        value = speed.decode_beside(reference) if speed and reference else math.nan
        limit = spec.min_tokens_per_second
        rows.append(GateRow(gate="decoding", meaning=meaning, value=value, limit=limit, unit="tokens/s", at_most=False))
    if spec.max_ttft_ms is not None:
        prompt = f"a prompt of {speed.prompt_tokens} tokens" if speed else "a prompt"
        meaning = f"from {prompt} to the first token: the baseline's time, by the speed-up in turns with it"
        value = speed.ttft_beside(reference) if speed and reference else math.nan
        rows.append(GateRow(gate="first_token", meaning=meaning, value=value, limit=spec.max_ttft_ms, unit="ms"))
    return rows


def _choice_rows(spec: GateSpec, variant: Scored) -> list[GateRow]:
    """What is lost of right answers to the questions, where the split has any."""
    paired = variant.choices.to_baseline if variant.choices else None
    if paired is None:
        return []
    rows = list[GateRow]()
    if spec.max_choice_drop is not None:
        meaning = f"95 % bound of the loss of right answers to the same {paired.samples} questions"
        limit = spec.max_choice_drop
        rows.append(GateRow(gate="choices", meaning=meaning, value=paired.bound, limit=limit, unit="points"))
    if paired.samples < FEWEST_QUESTIONS:
        meaning = "questions: with fewer the share of right answers is known to some points only"
        rows.append(_too_few("enough_questions", meaning, paired.samples, FEWEST_QUESTIONS))
    return rows


def _class_rows(spec: GateSpec, variant: Scored) -> list[GateRow]:
    """That no class is shown to lose more than its margin; a warning where a class is too small to show anything."""
    losses, margin = variant.class_losses, spec.per_class_margin
    if margin is None or not losses:
        return []
    label, worst = max(losses.items(), key=lambda item: item[1].shown)
    meaning = f"what class {label} loses of {variant.metric.name} at least (95 %, corrected for {len(losses)} classes)"
    rows = [GateRow(gate="per_class", meaning=meaning, value=worst.shown, limit=margin, unit="loss")]
    needed = fewest_samples(margin, len(losses))
    small, smallest = min(losses.items(), key=lambda item: item[1].samples)
    if smallest.samples < needed:
        few = sum(loss.samples < needed for loss in losses.values())
        meaning = f"samples of class {small}, the smallest of {few} that are too small to show any loss"
        rows.append(_too_few("class_size", meaning, smallest.samples, needed))
    return rows


def _sample_rows(variant: Scored) -> list[GateRow]:
    """A warning where a metric that is not right or wrong has too few samples for any bound."""
    paired = variant.to_baseline
    if paired is None or paired.test == "mcnemar" or paired.samples >= FEWEST:
        return []
    meaning = f"samples of the split: with fewer no bound of the loss of {variant.metric.name} is reliable"
    return [_too_few("enough_samples", meaning, paired.samples, FEWEST)]


def _too_few(gate: str, meaning: str, samples: int, needed: int) -> GateRow:
    return GateRow(
        gate=gate, meaning=meaning, value=samples, limit=needed, unit="samples", at_most=False, severity="warning"
    )
