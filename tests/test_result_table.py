"""A run's result in the terminal: of a search only what a person compares first, and why it ended."""

from __future__ import annotations

import pytest
from measurements import run_report
from searches import search_report

from flows.calls.run_result import RunResult
from flows.commands.result_table import print_report, print_variants
from tasks.evidence.number_text import times_text
from tasks.report.run_report import RunReport
from tasks.report.shortlist import shortlist


def printed(report: RunReport, capsys: pytest.CaptureFixture[str]) -> str:
    print_report(report)
    return " ".join(capsys.readouterr().out.split())


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "180")


def test_the_end_of_a_run_compares_with_the_baseline_and_nothing_seems_to_contradict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = run_report()
    text = printed(report, capsys)
    baseline, chosen = report.row(report.baseline), report.row(report.chosen)
    assert baseline is not None and chosen is not None and chosen.speedup is not None
    line = text[text.index(f"{chosen.name} ◀ chosen") :]
    assert times_text(baseline.bytes / chosen.bytes) in line and f"{chosen.speedup.value:.2f}×" in line
    assert "p50" not in text and f"winnow compare {report.run_id}" in text
    print_variants(report)
    assert "p50 ms" in capsys.readouterr().out


def test_a_notebook_shows_the_same() -> None:
    page = RunResult(search_report())._repr_html_()
    assert page.count("<tr>") == 1 + len(shortlist(search_report()))
    assert "<td><b>pruned25-r4.int8-static</b></td>" in page and "teacher.fp32 (baseline)" in page and "×" in page


def test_a_search_prints_the_front_and_says_how_many_more_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(search_report(repeat=3), capsys)
    assert "pruned25-r4.int8-static ◀ chosen" in text and "teacher.fp32 (baseline)" in text
    assert "student2-r2" not in text and "control-" not in text
    assert "73 more variants are in the report." in text
    assert "keeps the budget (at most 2.50 points of accuracy lost, p95 at most 0.3 ms" in text
    assert "34 candidates, 24 trainings, 18 min 13 s of computing." in text
    assert "Nothing cheaper than the best one may reach the margin." in text and "by +3.1 points against" in text


def test_a_budget_not_met_prints_the_nearest_candidates_with_their_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(search_report("refused", p95_ms=0.05, max_bytes=60_000), capsys)
    assert text.count("cannot be met: of 12 candidates") == 1
    assert "pruned25 loses too much: 95 % bound of the loss 0.0272 > 0.025; pruned25-r4.int8-static would fail" in text
    assert "student1 loses too much" in text and "pruned12 given up" not in text
    assert "9 more candidates are in the report." in text and "No candidate is left to train." in text


def test_a_stored_answer_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    report = search_report()
    assert report.search is not None
    stored = report.search.model_copy(update={"resolved_from": "[bold]r-1", "control": {}})
    text = printed(report.model_copy(update={"search": stored}), capsys)
    assert "Stored measurements of run [bold]r-1 answered; nothing was trained." in text and "trainings" not in text


def test_an_ordinary_run_prints_every_variant(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(run_report(), capsys)
    assert all(row.name in text for row in run_report().variants)
    assert "more variants" not in text and "budget" not in text
