"""Who met the test split in turn, and whether validation stood for it, in words."""

from __future__ import annotations

from dataclasses import dataclass

from model_registry.measurement import PairedComparison
from model_registry.sizes import size_text
from tasks.evidence.decision import SequenceMember
from tasks.evidence.number_text import points
from tasks.report.run_report import RunReport

_TONES = {"passed": "yes", "failed": "no", "not asked": "soft"}


@dataclass(frozen=True)
class SequenceLine:
    """A row of the table. Each loss is the mean and its one-sided 95 % bound, or a dash."""

    name: str
    digest: str
    size: str
    speedup: str
    validation: tuple[str, str]
    test: tuple[str, str]
    verdict: str
    tone: str
    version: str


def sequence_lines(report: RunReport) -> list[SequenceLine]:
    """From the safest to the cheapest; empty where one variant alone met the test split."""
    members = report.decision.sequence if report.decision else ()
    if len(members) < 2:
        return []
    metric = report.metric.name if report.metric else ""
    return [
        SequenceLine(
            name=m.name,
            digest=m.digest,
            size=size_text(m.bytes),
            speedup="–" if m.speedup is None else f"{m.speedup:.2f}×",
            validation=_loss(m.validation, metric),
            test=_loss(m.test, metric),
            verdict=_verdict(m),
            tone=_TONES[m.verdict],
            version=str(report.front.get(m.digest, "")),
        )
        for m in members
    ]


def sequence_order(report: RunReport) -> str:
    """Where the sequence leads: ``to the cheapest``, or of a front ``on``."""
    return "on" if report.spec.get("objective") == "front" else "to the cheapest"


def front_sentence(report: RunReport) -> str:
    """What the front is and how to use another one of it; '' where there is none."""
    if len(report.front) < 2:
        return ""
    names = ((version, report.row(digest)) for digest, version in report.front.items())
    listed = ", ".join(f"{version} ({row.name if row else '?'})" for version, row in sorted(names, key=lambda n: n[0]))
    return (
        f"The {len(report.front)} proven variants that no other beats at accuracy, latency and size are registered as "
        f"versions {listed}. The endpoint serves them under one name: a request chooses by min_accuracy, "
        "max_latency_ms or variant. To have another one answer those that do not choose: "
        f"winnow promote {report.model} VERSION."
    )


def sequence_sentence(report: RunReport) -> str:
    """How the variants fared in turn; '' where one alone met the test split."""
    members = report.decision.sequence if report.decision else ()
    if len(members) < 2:
        return ""
    fared = ", ".join(f"{m.name} {'was ' * (m.verdict == 'not asked')}{_verdict(m)}" for m in members)
    return f"On the test split, from the safest {sequence_order(report)}, until the first that fails: {fared}."


def gap_sentence(report: RunReport) -> str:
    """That a variant loses more (or less) on the test split than chance explains, and what to do; '' otherwise."""
    member = report.decision.gap if report.decision else None
    if member is None or member.gap is None or member.test is None or member.validation is None:
        return ""
    metric = report.metric.name if report.metric else "the metric"
    test, validation = -member.test.difference, -member.validation.difference
    more = "more" if member.gap.difference > 0 else "less"
    only = " Its limit on the loss is met on validation only." if _proven_on_validation_only(report, member) else ""
    return (
        f"The test split differs from validation: {member.name} loses {points(test, metric)} of {metric} on test and "
        f"{points(validation, metric)} on validation, {points(abs(member.gap.difference), metric)} {more}, and chance "
        f"alone rarely does that (p {member.gap.p:.2g}).{only} What a search finds on this validation split does not "
        "stand for the test split: before the next search, make both from the same sources in the same way, or hold "
        "back more samples for validation."
    )


def _proven_on_validation_only(report: RunReport, member: SequenceMember) -> bool:
    gates = report.decision.gates if report.decision else ()
    margin = next((g.limit for g in gates if g.gate == "non_inferior_to_baseline"), None)
    if margin is None or member.validation is None or member.test is None:
        return False
    return member.validation.bound <= margin < member.test.bound


def _verdict(member: SequenceMember) -> str:
    if not member.failed:
        return member.verdict
    return f"failed ({', '.join(gate.replace('_', ' ') for gate in member.failed)})"


def _loss(paired: PairedComparison | None, metric: str) -> tuple[str, str]:
    if paired is None:
        return "–", ""
    return points(-paired.difference, metric), points(paired.bound, metric)
