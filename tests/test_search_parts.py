"""The parts of a search on made-up measurements: what a candidate costs, what is proven, and what is counted."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import pytest
from measurements import measured
from search_pieces import BASELINE, appraise, candidate, clocked, file, outcome, setup

from flows.lineage import Made, MadeStep
from flows.searching.appraisal import Appraisal
from flows.searching.candidate import Candidate
from flows.searching.candidate_maker import CandidateMaker, tolerable_damage
from flows.searching.tally import Tally
from flows.searching.training_plan import TrainingPlan
from model_registry.measurement import Measurement
from model_registry.store import StoreUnavailable
from tasks.running.errors import TrainingDiverged
from tasks.running.stage import Outcome
from tasks.validate.gate_spec import GateSpec


def test_each_objective_has_its_cost() -> None:
    form = file("small", 0.1, (0, 0))
    assert appraise("latency").cost(form) == pytest.approx(0.25)
    assert appraise("size").cost(form) == 50_000
    assert appraise("throughput").cost(form) == pytest.approx(1 / form.throughput.value)
    assert appraise("both").cost(form) == appraise("front").cost(form) == pytest.approx(math.sqrt(0.25 * 50_000))


def test_the_cheapest_form_is_one_that_keeps_the_whole_budget() -> None:
    appraisal = appraise()
    fast, large, lossy = file("a", 0.1, (0, 1)), file("b", 0.05, (0, 1), 200_000), file("c", 0.04, (0, 60))
    assert [appraisal.passes(form) for form in (fast, large, lossy)] == [True, False, False]
    assert appraisal.cheapest([large, fast, lossy]) == fast
    assert appraisal.cheapest([large, lossy]) is None
    assert appraisal.over_budget(lossy) == [] and "bytes" in appraisal.over_budget(large)[0]


def test_a_ratio_that_is_not_reached_is_over_the_budget_before_any_training() -> None:
    asked = setup()
    ratios = {"min_speedup": 4.0, "min_shrink": 9.0}
    gates = asked.spec.gates.model_copy(update=ratios)
    asked = replace(asked, spec=asked.spec.model_copy(update={"gates": gates}))
    appraisal = Appraisal(asked, BASELINE, TrainingPlan(asked))
    slow, fast = file("a", 0.1, (0, 60)), file("b", 0.05, (0, 1), 40_000)
    assert appraisal.over_budget(fast) == [] and appraisal.passes(fast)
    speed, size = appraisal.over_budget(slow)  # 4 times as fast, perhaps only 3.76, and 8 times smaller
    assert "speed-up over the baseline" in speed and "3.76 < 4 ratio" in speed and "8 < 9 ratio" in size


def test_what_is_planned_to_be_too_slow_is_not_made() -> None:
    asked = setup("both")
    asked = replace(asked, spec=asked.spec.model_copy(update={"gates": GateSpec(min_speedup=4.0)}))
    appraisal = Appraisal(asked, BASELINE, TrainingPlan(asked))
    planned = Candidate("pruned10", "pruned", "", {}, 4)
    planned.planned, planned.planned_bytes = 100.0, 40_000.0
    for share, possible in ((0.0, True), (0.2, True), (0.29, True), (0.31, False)):  # trusted to a factor of 1.2
        planned.planned_share = share
        assert appraisal.standing(planned).possible == possible


def test_int8_is_refined_only_where_it_alone_loses_too_much() -> None:
    appraisal = appraise()

    def alone(fp32: tuple[int, int], int8: tuple[int, int], int8_ms: float = 0.05) -> bool:
        made = candidate(file("x.fp32", 0.1, fp32))
        assert made.int8 is not None
        made.forms += (measured("x.int8", BASELINE, p50=int8_ms, flips=int8, bytes=50_000, digest=made.int8.digest),)
        return appraisal.only_int8_fails(made)

    assert alone((0, 1), (0, 60))
    assert not alone((0, 1), (0, 1)), "int8 passes"
    assert not alone((0, 60), (0, 60)), "fp32 loses as much"
    assert not alone((0, 1), (0, 60), int8_ms=0.2), "fp32 is proven and cheaper"


def test_what_lacks_certainty_alone_is_nearly_proven() -> None:
    appraisal = appraise()

    def nearly(flips: tuple[int, int], *losses: float) -> bool:
        made = candidate(file("x.fp32", 0.1, flips))
        made.losses = [*losses, (flips[1] - flips[0]) / 360]
        return appraisal.nearly_proven(made)

    assert nearly((5, 11), 0.1), "0.017 lost, and the bound is above 0.03"
    assert not nearly((0, 1), 0.1), "it is proven"
    assert not nearly((5, 31), 0.1), "it loses too much"
    assert not nearly((5, 11), 0.016), "its latest training gained nothing"
    assert nearly((5, 11)), "there was only one"


def test_a_candidate_over_the_budget_or_beaten_is_not_trained() -> None:
    appraisal = appraise()
    planned = candidate(trained=False)
    planned.planned = 0.2
    assert (appraisal.standing(planned).possible, appraisal.standing(planned).cost) == (True, 0.2)
    fits = candidate(trained=False)
    fits.model, fits.clocked = fits.int8, (clocked("a", 0.1),)
    standing = appraisal.standing(fits)
    assert (standing.possible, standing.loss) == (True, None)
    assert standing.cost == pytest.approx(0.25)
    assert appraisal.line(fits) == "untrained, 0.1 ms, 50.0 kB"
    over = candidate(trained=False)
    over.model, over.clocked = over.int8, (clocked("b", 0.1, 200_000),)
    assert not appraisal.standing(over).possible and appraisal.line(over).endswith("over the budget")
    fits.behind = "pruned30"
    assert not appraisal.standing(fits).possible
    trained = appraisal.standing(candidate(file("c", 0.1, (0, 36))))
    assert trained.loss == pytest.approx(0.1) and trained.spread > 0


def test_where_few_epochs_can_be_had_the_search_begins_with_what_was_damaged_less() -> None:
    assert tolerable_damage(float("inf")) == tolerable_damage(5) == 1.0
    assert tolerable_damage(1) == pytest.approx(0.1) and 0.3 < tolerable_damage(2) < 0.4

    asked = setup(minutes=10)
    tally = Tally([MadeStep(outcome("teacher"))], outcome("teacher").variant, outcome("baseline"))
    for cost, damage in ((0.7, 0.04), (0.3, 0.3), (0.1, 0.9), (0.05, 2.0)):
        narrow = Candidate(f"pruned{cost}", "pruned", "", {}, 3, planned=cost, damage=damage)
        tally.candidates.append(narrow)
    maker = CandidateMaker(asked, tally, Appraisal(asked, BASELINE, TrainingPlan(asked)), None)  # type: ignore[arg-type]

    def start(epoch_seconds: float) -> float:
        for narrow in tally.candidates:
            narrow.row_seconds = epoch_seconds / 1100  # rows, those of validation counted as a third of one
        return maker.start()

    assert start(0.0) == 0.1, "nothing is known of their pace"
    assert [start(seconds) for seconds in (10.0, 220.0, 400.0, 4000.0)] == [0.1, 0.3, 0.7, 0.7]


def test_a_tally_counts_each_outcome_once_and_a_failure_ends_one_candidate() -> None:
    steps = [MadeStep(outcome("teacher", 100)), MadeStep(outcome("teacher.fp32", 2))]
    tally = Tally(steps, steps[1].outcome.variant, outcome("baseline", 50))
    assert tally.seconds == 2, "the teacher and the baseline are there before the search"
    made = candidate()
    tally.candidates.append(made)
    tally.add_step(outcome("pruned40-r1", 5), (), made)
    tally.count(outcome("ask", 3))
    assert (tally.seconds, made.seconds, len(tally.steps)) == (10, 5, 3)

    def fail(error: Exception) -> None:
        raise error

    tally.attempt(made, lambda: fail(TrainingDiverged("the loss became nan\nand more")))
    assert made.failure == "TrainingDiverged: the loss became nan" and tally.latest is made
    with pytest.raises(StoreUnavailable):
        tally.attempt(made, lambda: fail(StoreUnavailable("gone")))


def test_trainings_side_by_side_share_the_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    assert setup(parallel=1).job.threads is None
    assert setup(parallel=2).job.threads == max(1, cores // 2)


def test_only_trained_files_that_are_not_the_baseline_count() -> None:
    teacher = Candidate("teacher", "teacher", "", {}, 3, forms=(BASELINE, file("teacher.int8", 0.2, (0, 1))))
    untrained = candidate(file("a", 0.1, (0, 0)), trained=False)
    trained = candidate(file("b", 0.1, (0, 0)))
    trained.earlier = (file("c", 0.1, (0, 0)),)
    tally = Tally([MadeStep(outcome("teacher"))], outcome("teacher").variant, outcome("baseline"))
    tally.candidates += [teacher, untrained, trained]
    assert [form.name for form in tally.forms()] == ["teacher.int8", "b", "c"]


def test_a_loss_that_stood_still_while_the_epochs_grew_is_noticed() -> None:
    appraisal, trained = appraise(), candidate()
    for losses, epochs, found in (
        ([0.0085, 0.0095], [12, 36], 0.0),
        ([0.0095, 0.0085], [12, 36], pytest.approx(0.101, abs=1e-3)),
        ([0.0485, 0.0295], [4, 12], None),
        ([0.0085, 0.0095], [12, 15], None),
        ([-0.001, 0.001], [12, 36], None),
        ([0.002, -0.001], [12, 36], None),
        ([0.0085], [12], None),
        ([0.0085, 0.009], [0.3, 1], None),
    ):
        trained.losses, trained.epochs = losses, list(map(float, epochs))
        assert appraisal.standing(trained).stalled == found, (losses, epochs)


def test_what_more_epochs_gained_is_learned_from() -> None:
    appraisal = appraise()
    assert appraisal.rules([], 0.1).power == 1.5
    appraisal.plan.epochs = (8, 24, 72)
    assert appraisal.rules([], 0.1).power == pytest.approx(0.75), "after eight epochs more of them gain less"
    trained = candidate()
    trained.losses, trained.epochs = [0.08, 0.04, 0.05], [1, 4, 13]
    assert appraisal.rules([trained], 0.1).power == pytest.approx((0.5 + 2 * 0.75) / 3), "one alone says little"
    assert appraisal.rules([trained] * 18, 0.1).power == pytest.approx((18 * 0.5 + 2 * 0.75) / 20)
    trained.losses = [0.08, 0.079]
    assert appraisal.rules([trained] * 18, 0.1).power == pytest.approx(0.3), "never hopeless"


def test_what_an_epoch_leaves_of_damage_goes_by_the_metric_and_the_epochs() -> None:
    appraisal = appraise()
    accuracy = appraisal.baseline.metric.value
    assert appraisal.rules([], 0.1).steepness == pytest.approx(0.12 * accuracy)
    appraisal.plan.epochs = (8, 24, 72)
    assert appraisal.rules([], 0.1).steepness == pytest.approx(0.015 * accuracy)


def test_a_longer_search_keeps_what_a_shorter_one_proved() -> None:
    proven, again = file("old", 0.1, (0, 1)), file("new", 0.05, (0, 1))
    steps = [MadeStep(outcome("teacher")), MadeStep(outcome("teacher.fp32"))]
    asked = setup()

    def measured_outcome(form: Measurement) -> Outcome:
        values = {"measurement": form.model_dump(mode="json", by_alias=True)}
        return outcome(form.name).model_copy(update={"values": values})

    earlier = Made(
        outcome("data"),
        asked.data,
        (*steps, MadeStep(outcome("old"))),
        tuple(map(measured_outcome, (BASELINE, proven))),
    )
    tally = Tally(steps, steps[1].outcome.variant, measured_outcome(BASELINE))
    tally.carry(earlier)
    made = candidate(again)
    tally.candidates.append(made)
    assert [form.name for form in tally.forms()] == ["new", "old"]
    tally.measured[again.digest] = measured_outcome(again)
    whole = tally.made(outcome("data"), asked.data)
    assert {m.name for m in whole.candidates} == {"new", "old"}
    assert [step.outcome.name for step in whole.steps] == ["teacher", "teacher.fp32", "old"]
    made.forms = (proven,)
    assert [form.name for form in tally.forms()] == ["old"], "once"
