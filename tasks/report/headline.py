"""The run in a sentence, and in four numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model_registry.measurement import Speedup
from model_registry.sizes import size_text, three_digits
from tasks.evidence.decision import Scored
from tasks.evidence.number_text import bits_text, count_text, difference_text, metric_text, ms_text, points, times_text
from tasks.report.run_report import RunReport, VariantRow
from tasks.report.search_view import search_verdict

_TONES = {"released": "good", "registered": "good", "running": "warn", "interrupted": "warn"}


@dataclass(frozen=True)
class Headline:
    """``tone``: good, warn or bad."""

    word: str
    tone: str
    sentence: str


@dataclass(frozen=True)
class Tile:
    name: str
    value: str
    note: str


def headline(report: RunReport) -> Headline:
    """What became of the run, for a person who reads one sentence."""
    state = report.state
    return Headline(state, _TONES.get(state, "bad"), _sentence(report, state))


def tiles(report: RunReport) -> list[Tile]:
    """Metric, latency, size and memory of the chosen variant against the baseline; empty if nothing was chosen."""
    chosen, baseline = report.row(report.chosen), report.row(report.baseline)
    if chosen is None or baseline is None or report.metric is None:
        return []
    name = report.metric.name
    change = (
        f"{difference_text(chosen.metric.value - baseline.metric.value, name)} to the baseline, validation"
        if chosen.digest != baseline.digest
        else "validation"
    )
    if chosen.bits_per_byte is not None:
        change = f"{bits_text(chosen.bits_per_byte)}; {change}"
    return [
        Tile(name, metric_text(chosen.metric.value, name), change),
        _speed_tile(chosen, baseline),
        Tile("file size", size_text(chosen.bytes), _change(baseline.bytes, chosen.bytes, "smaller", "larger")),
        Tile(
            "peak memory",
            size_text(chosen.peak_rss_bytes),
            f"{size_text(baseline.peak_rss_bytes)} with the baseline",
        ),
        Tile("parameters", count_text(chosen.parameters), f"{count_text(baseline.parameters)} in the baseline"),
    ]


def _speed_tile(chosen: VariantRow, baseline: VariantRow) -> Tile:
    if chosen.token_speed is not None:
        return Tile("answers", f"{three_digits(chosen.token_speed.decode.value)} tokens/s", _speed(chosen, baseline))
    return Tile("latency p50", f"{ms_text(chosen.p50_ms)} ms", _speed(chosen, baseline))


def _sentence(report: RunReport, state: str) -> str:
    chosen, baseline = report.row(report.chosen), report.row(report.baseline)
    if state in ("released", "registered") and chosen and baseline and report.metric:
        end = "It answers at the endpoint" if state == "released" else "It is registered and was not deployed"
        if chosen.digest == baseline.digest and report.search:
            return f"{search_verdict(report)} The baseline {baseline.name} itself was taken. {end}."
        if chosen.digest == baseline.digest:
            return f"No compressed variant was good enough; the baseline {baseline.name} itself was taken. {end}."
        return f"{chosen.name} replaces {baseline.name}: {_gains(chosen, baseline)}. {_proof(report)}{end}."
    if state == "refused":
        gates = report.decision.gates if report.decision else ()
        failed = [g.gate.replace("_", " ") for g in gates if not g.passed and g.severity == "critical"]
        if report.search and report.search.best is None:
            return f"{search_verdict(report)} Nothing was registered."
        if chosen is None or not failed:
            why = report.error.message.partition("\n")[0].rstrip(".:") if report.error else "no reason is recorded"
            return f"The gates refused this run: {why}. Nothing was registered."
        gates_failed = ", ".join(failed)
        return f"{chosen.name} did not pass on the test split: {gates_failed}. Nothing was registered."
    if state == "failed" and report.error:
        return f"Stage {report.error.stage} failed: {report.error.type}. Nothing was released."
    if state == "crashed":
        return "The process of this run died without a word. Run it again: finished stages are kept."
    if state == "interrupted":
        return "The run was stopped. Run it again: finished stages are kept."
    return "The run is under way." if state == "running" else "Nothing was released."


def _gains(chosen: VariantRow, baseline: VariantRow) -> str:
    return f"{_change(baseline.bytes, chosen.bytes, 'smaller', 'larger')}, {_speed(chosen, baseline)}"


def _speed(chosen: VariantRow, baseline: VariantRow) -> str:
    """From interleaved rounds where there are any: two separate medians compare the machine's moods. What continues
    text is told by that: to score whole rows is mostly reading prompts."""
    said = chosen.token_speed
    if said is not None and said.decode_speedup is not None and said.prefill_speedup is not None:
        answers, prompts = _times(said.decode_speedup), _times(said.prefill_speedup)
        return f"its answers come {answers}, prompts are read {prompts}"
    if chosen.speedup is None:
        return _change(baseline.p50_ms, chosen.p50_ms, "faster", "slower")
    return _times(chosen.speedup)


def _times(speedup: Speedup) -> str:
    if speedup.verdict == "not distinguishable":
        return "as fast as the baseline, within noise"
    return _change(speedup.value, 1.0, "faster", "slower")


def _proof(report: RunReport) -> str:
    scored = {s.role: s for s in report.decision.scored} if report.decision else {}
    if "chosen" not in scored or scored["chosen"].to_baseline is None:
        return ""
    paired, name = scored["chosen"].to_baseline, scored["chosen"].metric.name
    margin = next((g.limit for g in (report.decision.gates if report.decision else ()) if "baseline" in g.gate), 0.0)
    return (
        f"On {paired.samples} test samples its {name} differs by {difference_text(paired.difference, name)}, "
        f"and with 95 % confidence it loses less than {points(max(paired.bound, 0.0), name)} "
        f"(margin {points(margin, name)}). {_bits(scored)}"
    )


def _bits(scored: Mapping[str, Scored]) -> str:
    own, other = (scored[role].bits_per_byte if role in scored else None for role in ("chosen", "baseline"))
    return f"That is {bits_text(own)}; the baseline takes {other:.4g}. " if own and other else ""


def _change(before: float, after: float, less: str, more: str) -> str:
    if after <= 0 or before <= 0:
        return ""
    ratio, word = (before / after, less) if after <= before else (after / before, more)
    return f"{times_text(ratio)} {word}" if ratio >= 1.05 else f"{100 * (ratio - 1):.0f} % {word}"
