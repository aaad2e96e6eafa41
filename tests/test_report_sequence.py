"""The variants that met the test split in turn, and splits that differ: on the page, the card, the terminal, MLflow."""

from __future__ import annotations

from typing import Any

import pytest
from measurements import decided, digits_measurements, run_report
from test_report import Page

from flows.commands.result_table import print_report
from model_registry.measurement import Measurement, PairedComparison
from tasks.evidence.decision import SequenceMember
from tasks.evidence.split_gap import SplitGap
from tasks.report.pages import render_card, render_html
from tasks.report.run_report import RunReport
from tasks.report.sequence_view import gap_sentence, sequence_lines, sequence_sentence


def paired(worse: int, bound: float) -> PairedComparison:
    return PairedComparison(
        reference="b" * 64, samples=359, better=0, worse=worse, difference=-worse / 359, interval=(-0.1, 0.0),
        bound=bound, p=0.5, test="mcnemar",
    )  # fmt: skip


def member(m: Measurement, verdict: Any, test: PairedComparison | None, gap: SplitGap | None) -> SequenceMember:
    failed = ("non_inferior_to_baseline",) if verdict == "failed" else ()
    return SequenceMember(
        name=m.name, digest=m.digest, bytes=m.bytes, speedup=m.speedup.value if m.speedup else None,
        validation=paired(2, 0.0155), test=test, verdict=verdict, failed=failed, gap=gap,
    )  # fmt: skip


def reported(status: Any = "released", *, p: float = 0.0004) -> RunReport:
    """The first of three passed (or, refused, did not), the next failed, the last was not asked."""
    baseline, *rest = digits_measurements()
    by_name = {m.name.removesuffix(".int8-static"): m for m in rest}
    safe, middle, cheap = (by_name[name] for name in ("teacher", "student", "pruned"))
    calm, gap = SplitGap(difference=0.001, p=0.8), SplitGap(difference=23 / 359, p=p)
    sequence: tuple[SequenceMember, ...] = (
        member(safe, "passed", paired(3, 0.0177), calm),
        member(middle, "failed", paired(25, 0.0962), gap),
        member(cheap, "not asked", None, None),
    )
    if status == "refused":
        sequence = (member(safe, "failed", paired(25, 0.0962), gap), member(middle, "not asked", None, None))
    decision = decided(safe, baseline, passed=status != "refused").model_copy(update={"sequence": sequence})
    return run_report(status, chosen=safe.digest, decision=decision)


def test_the_page_shows_who_met_the_test_split_in_turn() -> None:
    report = reported()
    page = Page(render_html(report))
    text = " ".join(" ".join(page.text).split())
    assert "From the safest to the cheapest, in an order fixed on validation, until the first that fails:" in text
    assert [line.verdict for line in sequence_lines(report)] == [
        "passed",
        "failed (non inferior to baseline)",
        "not asked",
    ]
    line = sequence_lines(report)[1]
    assert (line.validation, line.test) == (("0.557 points", "1.55 points"), ("6.96 points", "9.62 points"))
    assert (line.size, line.speedup) == ("24.3 kB", "3.29×")
    assert sequence_lines(report)[2].test == ("–", "")
    assert sequence_sentence(report).endswith(
        "teacher.int8-static passed, student.int8-static failed (non inferior to baseline), pruned.int8-static was not "
        "asked."
    )
    for end in ("released", "refused"):
        Page(render_html(reported(end)))
    card = render_card(report)
    row = "| student.int8-static | 24.3 kB | 3.29× | 0.557 points | 1.55 points | 6.96 points | 9.62 points | failed"
    assert row in card


def test_that_the_splits_differ_is_said_with_what_it_means_for_the_next_search() -> None:
    said = gap_sentence(reported())
    assert said.startswith(
        "The test split differs from validation: student.int8-static loses 6.96 points of accuracy on test and "
        "0.557 points on validation, 6.41 points more, and chance alone rarely does that (p 0.0004). "
        "Its limit on the loss is met on validation only. "
    )
    assert "make both from the same sources in the same way, or hold back more samples" in said
    assert said in " ".join(" ".join(Page(render_html(reported())).text).split()) and said in render_card(reported())
    assert gap_sentence(reported(p=0.02)) == ""
    assert "teacher.int8-static loses 6.96 points" in gap_sentence(reported("refused"))


def test_the_terminal_says_both(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "180")
    print_report(reported())
    text = " ".join(capsys.readouterr().out.split())
    assert sequence_sentence(reported()) in text and "warning: " + gap_sentence(reported()) in text


def test_one_variant_alone_is_shown_as_before() -> None:
    """So is a record of before."""
    report = run_report()
    assert report.decision and report.decision.sequence == () and report.decision.gap is None
    assert (sequence_lines(report), sequence_sentence(report), gap_sentence(report)) == ([], "", "")
    assert "From the safest" not in render_html(report) and "From the safest" not in render_card(report)


def test_a_front_is_shown_with_its_versions_and_how_to_use_another_one() -> None:
    report = reported()
    members = report.decision.sequence if report.decision else ()
    report = report.model_copy(
        update={
            "front": {members[0].digest: 4, members[1].digest: 3},
            "spec": {"model": "digits", "objective": "front"},
        }
    )
    text = " ".join(" ".join(Page(render_html(report)).text).split())
    assert "From the safest on, in an order fixed on validation" in text
    assert "are registered as versions 3 (student.int8-static), 4 (teacher.int8-static)" in text
    assert "winnow promote digits VERSION" in text
    assert [line.version for line in sequence_lines(report)] == ["4", "3", ""]
