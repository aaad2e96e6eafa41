"""The compression proof's tables: what is taken from a report, which goals are reached, what the search cost."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from measurements import run_report
from searches import search_report

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))

from benchmarks.proof_cost import cost_of, cost_table, run_of, runs_table  # noqa: E402
from benchmarks.proof_goals import ROWS, Goal, Row, count_text, goals_table, judge  # noqa: E402
from benchmarks.proof_result import Loss, NothingMeasured, Result, result_of, result_table  # noqa: E402
from flows.spec import load_spec  # noqa: E402
from model_registry.measurement import Speedup  # noqa: E402
from tasks.report.run_report import StageLine  # noqa: E402


@pytest.fixture
def result() -> Result:
    return result_of(search_report())


def goals(row: Row, result: Result) -> dict[str, Goal]:
    return {goal.name: goal for goal in judge(row, result)}


def cells(table: str) -> list[list[str]]:
    """The cells of a Markdown table, its head first; every line has as many as the head."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert set(rows.pop(1)) == {"---"}
    assert {len(row) for row in rows} == {len(rows[0])}
    return rows


def with_loss(result: Result, value: float, *, bound: float, p: float) -> Result:
    assert result.loss is not None
    significant = value > 0 and p < 0.05
    update = {"value": value, "bound": bound, "p": p, "significant": significant}
    return result.model_copy(update={"loss": Loss.model_validate({**dict(result.loss), **update})})


def with_speedup(result: Result, value: float, low: float, high: float) -> Result:
    speedup = Speedup(value=value, interval=(low, high), verdict="faster")
    return result.model_copy(update={"speedup": speedup})


def test_the_numbers_are_those_of_the_report() -> None:
    report = search_report()
    result = result_of(report)
    baseline, chosen = report.row(report.baseline), report.row(report.chosen)
    assert baseline and chosen and result.chosen and report.decision
    assert (result.baseline.bytes, result.chosen.bytes) == (4_021_000, 113_400)
    assert result.smaller == pytest.approx(4_021_000 / 113_400)
    assert result.speedup == chosen.speedup
    assert result.chosen.p50_interval == chosen.latency_interval.p50
    test = {s.role: s.metric.value for s in report.decision.scored}
    assert (result.baseline.metric, result.chosen.metric) == (test["baseline"], test["chosen"])
    assert result.loss is not None
    assert (result.loss.value, result.loss.bound, result.loss.p) == (1 / 359, 0.0139, 1.0)
    assert result.loss.interval == (-0.014, 0.02)  # of the loss: the difference's, turned round
    assert not result.loss.significant
    assert result.failed_gates == ()


def test_the_row_holds_both_files_side_by_side(result: Result) -> None:
    head, row = cells(result_table("vgg", result, "3 of 4 reached"))
    found = dict(zip(head, row, strict=True))
    assert found["variant"] == "pruned25-r4.int8-static"
    assert found["bytes"] == "4,021,000 → 113,400"
    assert found["smaller"] == "35.5×"
    assert found["faster (95 %)"] == "9.45× (8.88 – 9.92)"
    assert found["verdict"] == "faster"
    assert found["on the test split"] == "98.33 % → 97.50 %"
    assert found["loss (95 % bound)"] == "0.279 points (1.39 points)"
    assert found["paired p"] == "1, no significant loss"
    assert found["goals"] == "3 of 4 reached"
    assert result_table("vgg", result, "", head=False).startswith("| vgg | pruned25")


def test_a_goal_missed_says_by_how_much(result: Result) -> None:
    found = goals(ROWS["vgg"], with_speedup(result, 9.0, 8.5, 9.5))
    assert [(g.reached, g.outcome()) for g in found.values()] == [
        (True, "reached"),
        (False, "missed by 3×, 25% of it"),
        (True, "reached, but not by its whole 95 % interval"),  # 0.28 points, with a bound of 1.39
        (True, "reached"),
    ]
    assert count_text(list(found.values())) == "3 of 4 reached"
    lost = goals(ROWS["vgg"], with_loss(result, 0.0062, bound=0.008, p=0.01))["loss on the test split"]
    assert (lost.reached, lost.outcome()) == (False, "missed by 0.12 points, 24% of it")
    gained = goals(ROWS["vgg"], with_loss(result, -0.003, bound=-0.001, p=0.01))["loss on the test split"]
    assert (gained.sure, gained.text) == (True, "−0.3 points (95 % bound −0.1 points)")


@pytest.mark.parametrize(("low", "sure"), [(12.0, True), (11.9, False)])
def test_a_speed_up_is_sure_where_its_whole_interval_is(result: Result, low: float, sure: bool) -> None:
    goal = goals(ROWS["vgg"], with_speedup(result, 12.5, low, 13.0))["times faster, batch 1, 1 thread"]
    assert (goal.reached, goal.sure) == (True, sure)


def test_a_speed_up_under_other_conditions_is_no_answer(result: Result) -> None:
    fast = with_speedup(result, 50.0, 49.0, 51.0)
    goal = goals(ROWS["digits"], fast)["times faster, batch 16, 1 thread"]
    assert (goal.reached, goal.outcome(), goal.text) == (False, "missed", "measured with batch 1, 1 thread")
    right = goals(ROWS["digits"], fast.model_copy(update={"batch": 16}))["times faster, batch 16, 1 thread"]
    assert right.sure


@pytest.mark.parametrize(
    ("value", "bound", "p", "margin", "insignificant"),
    [
        (0.005, 0.015, 0.3, True, True),
        (0.005, 0.021, 0.3, False, True),
        (0.015, 0.019, 0.001, True, False),
        (-0.02, -0.01, 0.001, True, True),  # significantly better
    ],
)
def test_a_margin_holds_for_the_bound_and_the_loss_may_not_be_significant(
    result: Result, value: float, bound: float, p: float, margin: bool, insignificant: bool
) -> None:
    found = goals(ROWS["digits"], with_loss(result, value, bound=bound, p=p))
    assert found["95 % bound of the loss on the test split"].reached is margin
    assert found["paired p of the loss"].reached is insignificant


def test_a_refused_search_is_a_result_too() -> None:
    refused = search_report("refused", max_bytes=10)
    result = result_of(refused)
    gate = goals(ROWS["vgg"], result)["gates that refuse it"]
    assert (gate.reached, gate.outcome()) == (False, "missed")
    assert gate.text == "refused: non inferior to baseline"
    assert result.chosen is not None  # the nearest, which the gates looked at

    nothing = result_of(search_report("refused", max_bytes=10, chosen=None, decision=None))
    assert nothing.chosen is None
    found = goals(ROWS["digits"], nothing)
    assert not any(goal.reached for goal in found.values())
    assert found["times smaller"].text == "nothing was chosen"
    assert found["gates that refuse it"].text == "refused: GateFailed"
    [_, row] = cells(result_table("digits", nothing, "0 of 5 reached"))
    assert row[:3] == ["digits", "teacher.fp32, nothing else", "4,021,000"]


def test_a_baseline_that_was_chosen_itself_is_nothing_small() -> None:
    report = search_report()
    result = result_of(report.model_copy(update={"chosen": report.baseline}))
    assert result.chosen is None
    assert not goals(ROWS["vgg"], result)["times smaller"].reached


def test_a_run_that_measured_nothing_is_no_proof() -> None:
    with pytest.raises(NothingMeasured, match="measured nothing: stage prune grew"):
        result_of(run_report("failed"))


def test_goals_are_a_table(result: Result) -> None:
    rows = cells(goals_table(judge(ROWS["digits"], result)))
    assert [row[:2] for row in rows[1:]] == [
        ["times smaller", "at least 25×"],
        ["times faster, batch 16, 1 thread", "at least 6×"],
        ["95 % bound of the loss on the test split", "at most 2.00 points"],
        ["paired p of the loss", "at least 0.05"],
        ["gates that refuse it", "at most 0"],
    ]


def test_an_own_spec_has_no_goal_but_its_gates(result: Result) -> None:
    assert list(goals(Row("own", "own.yaml"), result)) == ["gates that refuse it"]


def test_the_cost_is_told_candidate_by_candidate() -> None:
    search = search_report().search
    assert search is not None
    cost = cost_of(search)
    assert sum(c.seconds for c in cost.candidates) + cost.other_seconds == pytest.approx(search.seconds)
    _, *lines, rest, total = cells(cost_table(cost))
    assert [line[0] for line in lines] == [c.name for c in search.candidates]
    assert lines[4] == [
        "pruned25", "teacher pruned to 25% of its latency", "4", "2 min 06 s", "keeps the budget"
    ]  # fmt: skip
    assert lines[-1][2:] == ["0", "0.0 s", "failed"]
    assert rest[3] == "5 min 37 s"
    assert total[1:4] == ["12 candidates", "24", "18 min 13 s"]


def test_runs_show_what_the_store_saves() -> None:
    first = search_report(
        stages=(
            StageLine(name="data", status="computed", seconds=3.0, compute_seconds=2.5),
            StageLine(name="distill:pruned25-r1", status="computed", seconds=31.0, compute_seconds=30.0),
            StageLine(name="bring", status="reused", seconds=0.1),
            StageLine(name="register", status="computed", seconds=1.0),
        )
    )
    assert first.search is not None
    answered = first.search.model_copy(update={"resolved_from": first.run_id})
    lines = tuple(s.model_copy(update={"status": "reused", "compute_seconds": 0.0}) for s in first.stages)
    again = first.model_copy(update={"search": answered, "stages": lines})
    runs = [
        run_of("search", first, exit_code=0, wall_seconds=80.0, loads=(0.2, 1.5)),
        run_of("the same again", again, exit_code=0, wall_seconds=11.0, loads=(1.5, 1.2)),
    ]
    assert runs[0].computed == ("data", "distill:pruned25-r1")  # registering computes nothing
    assert runs[1].resolved_from == first.run_id
    assert cells(runs_table(runs))[1:] == [
        ["search", "1 min 20 s", "32.5 s", "2", "1", "its stages", "released"],
        ["the same again", "11.0 s", "0.0 s", "0", "4", "stored search", "released"],
    ]


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.name)
def test_the_specs_ask_for_what_the_goals_do(row: Row) -> None:
    spec = load_spec(row.spec, [])
    assert spec.search is not None
    assert (spec.measure.batch, spec.export.threads) == (row.batch, row.threads)
    assert spec.objective == ("latency" if row.budget_only else "both"), "who says nothing means both"
    if row.relative_drop is None:
        assert spec.gates.margin == (row.drop or row.margin)
    assert spec.gates.relative_margin == row.relative_drop
