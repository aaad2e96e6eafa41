"""The parts of a search on made-up measurements: what a candidate costs, what is proven, and what is counted."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
from measurements import measured

from flows.lineage import Made, MadeStep
from flows.searching.appraisal import Appraisal
from flows.searching.candidate import Candidate
from flows.searching.candidate_maker import CandidateMaker, tolerable_damage
from flows.searching.search_setup import SearchSetup
from flows.searching.tally import Tally
from flows.searching.training_plan import LABELS, TrainingPlan, questions_of
from flows.spec import PipelineSpec
from model_registry.manifest import FileEntry
from model_registry.measurement import Clocked, Measurement
from model_registry.store import StoreUnavailable
from model_registry.variant import Variant
from tasks.ask import AskSpec
from tasks.running.errors import TrainingDiverged
from tasks.running.splits import DataRef, MetricRef, SplitRef
from tasks.running.stage import Job, Outcome, WorkloadRef

BASELINE = measured("teacher.fp32", p50=0.4, right=354, bytes=400_000)
WORKLOAD = WorkloadRef(path="tasks.workloads.digits:Digits")


def outcome(name: str, seconds: float = 0.0) -> Outcome:
    variant = Variant(
        name=name,
        stage="train",
        format="torch",
        files=(FileEntry(path="f", sha256=f"{len(name):064d}", size=1),),
        inputs=(),
        outputs=(),
    )
    return Outcome(
        stage="train", name=name, status="computed", seconds=0, cost_seconds=seconds, key="k", version="v",
        variants=(variant,),
    )  # fmt: skip


def setup(objective: str = "latency", distill: dict[str, Any] | None = None, **search: Any) -> SearchSetup:
    spec = PipelineSpec.model_validate(
        {
            "model": "m",
            "workload": WORKLOAD,
            "objective": objective,
            "budget": {"max_accuracy_drop": 0.03, "max_bytes": 100_000},
            "gates": {"per_class_margin": None},
            "search": search,
            "distill": distill,
        }
    )
    metric = MetricRef(name="accuracy", better="higher", builtin=True)
    file = FileEntry(path="f", sha256="0" * 64, size=1)
    splits = tuple(SplitRef(name=name, file=file, rows=rows) for name, rows in (("train", 1000), ("validation", 300)))
    data = DataRef(fingerprint="f", splits=splits, columns={}, task="classes", metric=metric)
    job = Job(run_id="r", model="m", store="s3://s", workload=WORKLOAD)
    return SearchSetup.of(job, spec, data, outcome("teacher"), ())


def appraise(objective: str = "latency") -> Appraisal:
    given = setup(objective)
    return Appraisal(given, BASELINE, TrainingPlan(given))


def clocked(name: str, p50: float, size: int = 50_000) -> Clocked:
    form = file(name, p50, (0, 0), size)
    assert form.speedup is not None
    return Clocked(
        digest=form.digest, name=name, bytes=size, batch=1, p50_ms=p50, p95_ms=form.p95_ms, throughput=form.throughput,
        speedup=form.speedup, tail_share=form.p95_ms / BASELINE.p95_ms,
    )  # fmt: skip


def file(name: str, p50: float, flips: tuple[int, int], size: int = 50_000) -> Measurement:
    return measured(name, BASELINE, p50=p50, right=354 + flips[0] - flips[1], flips=flips, bytes=size)


def candidate(*forms: Measurement, trained: bool = True) -> Candidate:
    made = Candidate("pruned40", "pruned", "", {}, 3, forms=forms, rung=int(trained), losses=[0.01] * trained)
    made.int8 = Variant(name="pruned40.int8-static", stage="quantize", format="onnx", files=(), inputs=(), outputs=())
    return made


def test_each_objective_has_its_cost() -> None:
    form = file("small", 0.1, (0, 0))
    assert appraise("latency").cost(form) == pytest.approx(0.25)
    assert appraise("size").cost(form) == 50_000
    assert appraise("throughput").cost(form) == pytest.approx(1 / form.throughput.value)


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


def test_epochs_are_what_the_minutes_allow_unless_the_spec_says_them() -> None:
    first = candidate(trained=False)
    first.row_seconds = 0.001  # an epoch of 1000 rows and a look at 300 others takes 1.1 s
    plan = TrainingPlan(setup(minutes=10))
    assert plan.seconds(first) == pytest.approx(1.1 + 15), "at least one epoch"
    plan.decide_epochs(first)
    assert plan.epochs == (16, 48, 144), "the first takes 3 % of the minutes"
    assert plan.seconds(first) == pytest.approx(1.1 * 16 + 15)
    slow = candidate(trained=False)
    slow.row_seconds = 1.0
    plan.decide_epochs(slow)
    assert plan.epochs == (16, 48, 144), "once"
    hurried = TrainingPlan(setup(minutes=1))
    hurried.decide_epochs(slow)
    assert hurried.epochs == (1, 3, 9)


def test_the_last_rung_has_most_of_what_is_left() -> None:
    plan = TrainingPlan(setup(minutes=10))
    trained = candidate()
    trained.row_seconds = 0.01
    plan.decide_epochs(trained)
    assert plan.epochs == (1, 3, 9)
    trained.rung, trained.epochs, trained.training_seconds = 2, [1, 4], 29.0  # 8 s each, and 5 to begin
    plan.left = 425.0
    assert plan.next_epochs(trained) == 45  # nine tenths of it, less what measuring takes
    assert plan.seconds(trained) == pytest.approx(8 * 45 + 15)
    assert plan.ahead(trained) == pytest.approx(49 / 4)
    plan.gauged, trained.rung, trained.epochs = True, 1, [3]
    assert plan.ahead(trained) == pytest.approx((3 + 3 + int((0.9 * (425 - 24) - 15) / 8)) / 3)
    plan.left = 10.0
    trained.rung = 2
    assert plan.next_epochs(trained) == 1
    trained.rung = 3
    assert plan.ahead(trained) == 1.0


def test_time_is_left_for_another_one_only_if_that_could_use_it() -> None:
    trained, other = candidate(), candidate()
    plan = TrainingPlan(setup(minutes=10), [trained, other])
    trained.row_seconds = other.row_seconds = 0.01
    plan.decide_epochs(trained)
    for one in (trained, other):
        one.rung, one.epochs, one.training_seconds = 2, [1, 4], 29.0  # 8 s each
    plan.left = 425.0
    assert plan.next_epochs(trained) == 45, "the other one is not known to come within the margin"
    other.hoped = 3.5  # ten epochs and what measuring takes, 95 s
    assert plan.next_epochs(trained) == 37, "three quarters: 106 s are left for it"
    other.hoped = 4.5
    assert plan.next_epochs(trained) == 45
    other.hoped, other.rung = 3.5, 3
    assert plan.next_epochs(trained) == 45, "it has had all its trainings"


def test_what_is_nearly_proven_is_trained_on_in_smaller_steps() -> None:
    trained = candidate()
    plan = TrainingPlan(setup(minutes=10), [trained])
    trained.row_seconds = 0.01
    plan.decide_epochs(trained)
    trained.rung, trained.epochs, trained.training_seconds = 3, [1, 4, 40], 293.0  # 8 s each
    plan.left = 90.0
    assert plan.setup.rungs_of(trained) == 3 and plan.ahead(trained) == 1.0
    trained.longer = 1
    assert plan.setup.rungs_of(trained) == 4
    trained.enough = 1.5
    assert plan.next_epochs(trained) == 8, "not the 20 that would do"
    assert plan.ahead(trained) == pytest.approx(48 / 40)
    assert plan.rung(trained).learning_rate == pytest.approx(plan.distilling.learning_rate * 8 / 40)
    trained.enough = 1.04
    assert plan.next_epochs(trained) == 2, "no more than it takes"
    said = TrainingPlan(setup(minutes=10, distill={"learning_rate": 0.002}), [trained])
    said.epochs, said.left = plan.epochs, plan.left
    assert said.rung(trained).learning_rate == 0.002


def test_an_epoch_takes_what_the_training_measured_and_not_its_share_of_what_comes_once() -> None:
    trained = candidate()
    trained.rung, trained.epochs, trained.training_seconds, trained.measured_epoch = 1, [2], 25.0, 4.0
    assert trained.epoch_seconds(1000) == 4.0
    trained.measured_epoch = 0.0  # a record of before does not say
    assert trained.epoch_seconds(1000) == 10.0


def test_a_long_training_sees_more_views_than_the_short_ones_had() -> None:
    plan = TrainingPlan(setup(minutes=10))
    trained = candidate()
    trained.row_seconds = 0.01
    plan.decide_epochs(trained)
    mixes = plan.mixes(0.02, augments=True)  # 20 s for a view of 1000 rows
    assert mixes[1]["views"] == 1, "as the first training has epochs"
    plan.decide_mix(mixes[1])
    trained.rung, trained.epochs, trained.training_seconds, plan.left = 2, [1, 4], 29.0, 425.0
    assert plan.next_epochs(trained) == 35, "45 without 80 s for the teacher's answers"
    assert plan.rung(trained).views == 4
    plan.left = 160.0
    assert plan.rung(trained).views == 1, "a fifth of what is left"
    trained.rung = 0
    plan.left = 425.0
    assert plan.rung(trained).views == 1, "it sees each row once"
    said = TrainingPlan(setup(minutes=10, distill={"views": 2}))
    said.decide_epochs(trained)
    said.decide_mix(said.mixes(0.02, augments=True)[1])
    trained.rung = 2
    assert said.rung(trained).views == 2


def test_a_short_training_is_left_out_where_the_long_one_would_come_too_late() -> None:
    plan = TrainingPlan(setup(minutes=10))
    trained = candidate()
    trained.row_seconds = 0.01
    plan.decide_epochs(trained)
    trained.rung, trained.epochs, trained.training_seconds, trained.hoped = 1, [1], 13.0, 21.0
    assert plan.finish_seconds(trained) == pytest.approx(20 * 8 + 15)
    plan.left = 260.0
    assert plan.next_epochs(trained) == 1, "nobody was trained twice yet: as many again tell what more of them gain"
    plan.gauged = True
    assert plan.next_epochs(trained) == 3, "39 s, and 1.25 times 175 s are left"
    plan.left = 250.0
    assert plan.next_epochs(trained) == 26, "nine tenths of what is left"
    assert plan.ahead(trained) == 27.0
    plan.left = 170.0
    assert plan.next_epochs(trained) == 3, "there is no hope for it"


def test_the_last_rung_is_no_longer_than_it_takes() -> None:
    plan = TrainingPlan(setup(minutes=10))
    trained = candidate()
    trained.row_seconds = 0.01
    plan.decide_epochs(trained)
    trained.rung, trained.epochs, trained.training_seconds, plan.left = 2, [1, 4], 29.0, 425.0
    trained.enough = 3.0
    assert plan.next_epochs(trained) == 8, "4 times 3"
    trained.enough = 1.1
    assert plan.next_epochs(trained) == 3, "as many as the rung before"
    trained.enough = 100.0
    assert plan.next_epochs(trained) == 45, "as there is time"


def test_epochs_of_the_spec_stay_as_they_are() -> None:
    said = TrainingPlan(setup(distill={"epochs": 13}))
    trained = candidate()
    said.decide_epochs(trained)
    assert said.epochs == (1, 3, 9)
    trained.rung, trained.epochs, trained.training_seconds = 2, [1, 4], 24.0
    assert said.next_epochs(trained) == 9
    assert said.ahead(trained) == pytest.approx(13 / 4)


def test_what_more_epochs_gained_is_learned_from() -> None:
    appraisal = appraise()
    assert appraisal.rules([], 0.1).power == 1.5
    appraisal.plan.epochs = (8, 24, 72)
    assert appraisal.rules([], 0.1).power == pytest.approx(0.75), "after eight epochs more of them gain less"
    trained = candidate()
    trained.losses, trained.epochs = [0.08, 0.04, 0.05], [1, 4, 13]
    assert appraisal.rules([trained], 0.1).power == pytest.approx(0.5)
    trained.losses = [0.08, 0.079]
    assert appraisal.rules([trained], 0.1).power == pytest.approx(0.3), "never hopeless"


def test_labels_alone_and_two_shares_of_the_teacher_are_tried_where_the_spec_says_nothing() -> None:
    plan = TrainingPlan(setup(minutes=10, distill={"epochs": 39}))
    mixes = plan.mixes(0.001, augments=False)
    assert [mix["alpha"] for mix in mixes] == [0.0, 0.5, 0.9] and not any(mix["views"] for mix in mixes)
    assert [mix["views"] for mix in plan.mixes(0.01, augments=True)] == [None, 3, 3], "as an epoch each; not dearer"
    assert [mix["views"] for mix in plan.mixes(0.02, augments=True)] == [None, 2, 2]
    assert plan.mixes(1.0, augments=True) == (LABELS,), "asking would take longer than the search"
    trained = [plan.distilling.model_copy(update=dict(mix)) for mix in mixes]
    assert questions_of(trained[0]) is None
    assert questions_of(trained[1]) == AskSpec(validation=False)
    assert TrainingPlan(setup(distill={"alpha": 0.3})).mixes(0.001, augments=False) == ({},)


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


def test_a_candidate_trains_with_the_larger_batch_where_that_hardly_lengthens_a_step() -> None:
    values = {"row_seconds": 24e-6, "larger": {"batch_size": 256, "row_seconds": 8e-6}}
    made = candidate()
    made.pace(values, larger=True)
    assert (made.row_seconds, made.batch_size) == (8e-6, 256)
    plan = TrainingPlan(setup(distill={"epochs": 39}))
    assert plan.rung(made).batch_size == 256
    assert plan.training(made, 5).batch_size == 256, "so that a control learns as its pupil did"
    made.pace(values, larger=False)  # the spec says it
    assert (made.row_seconds, made.batch_size) == (24e-6, None)
    assert plan.rung(made).batch_size == plan.distilling.batch_size


def test_what_trains_more_slowly_than_the_first_one_is_scouted_for_as_long_not_for_as_many_epochs() -> None:
    plan = TrainingPlan(setup(minutes=10))
    fast, slow = candidate(trained=False), candidate(trained=False)
    fast.row_seconds, slow.row_seconds = 0.001, 0.005  # 1.1 and 5.5 s an epoch; 3 % of the minutes are 18 s
    plan.decide_epochs(fast)
    assert plan.next_epochs(fast) == 16 and plan.next_epochs(slow) == 3
    fast.rung = slow.rung = 1
    plan.gauged = True
    assert (plan.next_epochs(fast), plan.next_epochs(slow)) == (plan.epochs[1], 9)


def test_what_takes_longer_for_an_epoch_than_may_be_spent_is_shown_a_part_of_the_rows() -> None:
    plan = TrainingPlan(setup(minutes=10))
    slow = candidate(trained=False)
    slow.row_seconds = 0.05  # 55 s an epoch, and 18 may be spent
    plan.decide_epochs(slow)
    assert plan.next_epochs(slow) == pytest.approx(18 / 55)
    spec = plan.rung(slow)
    assert spec.epochs == 1 and spec.share == pytest.approx(18 / 55)
    slow.epochs, slow.training_seconds, slow.rung, plan.gauged = [18 / 55], 30.0, 1, True
    assert plan.next_epochs(slow) == pytest.approx(54 / 55), "three times as long, by what an epoch takes"
    assert plan.ahead(slow) > 3
    endless = candidate(trained=False)
    endless.row_seconds = 10.0
    assert plan.rung(endless).share == 0.1
    assert TrainingPlan(setup(distill={"epochs": 13})).rung(slow).share == 1.0
