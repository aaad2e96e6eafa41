"""The parts of a search on made-up measurements: what a candidate costs, what is proven, and what is counted."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
from measurements import measured

from flows.lineage import MadeStep
from flows.searching.appraisal import Appraisal
from flows.searching.candidate import Candidate
from flows.searching.search_setup import SearchSetup
from flows.searching.tally import Tally
from flows.spec import PipelineSpec
from model_registry.manifest import FileEntry
from model_registry.measurement import Measurement
from model_registry.store import StoreUnavailable
from model_registry.variant import Variant
from tasks.running.errors import TrainingDiverged
from tasks.running.splits import DataRef, MetricRef
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


def setup(objective: str = "latency", **search: Any) -> SearchSetup:
    spec = PipelineSpec.model_validate(
        {
            "model": "m",
            "workload": WORKLOAD,
            "objective": objective,
            "budget": {"max_accuracy_drop": 0.03, "max_bytes": 100_000},
            "gates": {"per_class_margin": None},
            "search": search,
        }
    )
    metric = MetricRef(name="accuracy", better="higher", builtin=True)
    data = DataRef(fingerprint="f", splits=(), columns={}, task="classification", metric=metric)
    job = Job(run_id="r", model="m", store="s3://s", workload=WORKLOAD)
    return SearchSetup.of(job, spec, data, outcome("teacher"), ())


def file(name: str, p50: float, flips: tuple[int, int], size: int = 50_000) -> Measurement:
    return measured(name, BASELINE, p50=p50, right=354 + flips[0] - flips[1], flips=flips, bytes=size)


def candidate(*forms: Measurement, trained: bool = True) -> Candidate:
    made = Candidate("pruned40", "pruned", "", {}, 3, forms=forms, rung=int(trained), losses=[0.01] * trained)
    made.int8 = Variant(name="pruned40.int8-static", stage="quantize", format="onnx", files=(), inputs=(), outputs=())
    return made


def test_each_objective_has_its_cost() -> None:
    form = file("small", 0.1, (0, 0))
    assert Appraisal(setup("latency"), BASELINE).cost(form) == pytest.approx(0.25)
    assert Appraisal(setup("size"), BASELINE).cost(form) == 50_000
    assert Appraisal(setup("throughput"), BASELINE).cost(form) == pytest.approx(1 / form.throughput.value)


def test_the_cheapest_form_is_one_that_keeps_the_whole_budget() -> None:
    appraisal = Appraisal(setup(), BASELINE)
    fast, large, lossy = file("a", 0.1, (0, 1)), file("b", 0.05, (0, 1), 200_000), file("c", 0.04, (0, 60))
    assert [appraisal.passes(form) for form in (fast, large, lossy)] == [True, False, False]
    assert appraisal.cheapest([large, fast, lossy]) == fast
    assert appraisal.cheapest([large, lossy]) is None
    assert appraisal.over_budget(lossy) == [] and "bytes" in appraisal.over_budget(large)[0]


def test_a_ratio_that_is_not_reached_is_over_the_budget_before_any_training() -> None:
    asked = setup()
    ratios = {"min_speedup": 4.0, "min_shrink": 9.0}
    gates = asked.spec.gates.model_copy(update=ratios)
    appraisal = Appraisal(replace(asked, spec=asked.spec.model_copy(update={"gates": gates})), BASELINE)
    slow, fast = file("a", 0.1, (0, 60)), file("b", 0.05, (0, 1), 40_000)
    assert appraisal.over_budget(fast) == [] and appraisal.passes(fast)
    speed, size = appraisal.over_budget(slow)  # 4 times as fast, perhaps only 3.76, and 8 times smaller
    assert "speed-up over the baseline" in speed and "3.76 < 4 ratio" in speed and "8 < 9 ratio" in size


def test_int8_is_refined_only_where_it_alone_loses_too_much() -> None:
    appraisal = Appraisal(setup(), BASELINE)

    def alone(fp32: tuple[int, int], int8: tuple[int, int], int8_ms: float = 0.05) -> bool:
        made = candidate(file("x.fp32", 0.1, fp32))
        assert made.int8 is not None
        made.forms += (measured("x.int8", BASELINE, p50=int8_ms, flips=int8, bytes=50_000, digest=made.int8.digest),)
        return appraisal.only_int8_fails(made)

    assert alone((0, 1), (0, 60))
    assert not alone((0, 1), (0, 1)), "int8 passes"
    assert not alone((0, 60), (0, 60)), "fp32 loses as much"
    assert not alone((0, 1), (0, 60), int8_ms=0.2), "fp32 is proven and cheaper"


def test_a_candidate_over_the_budget_or_beaten_is_not_trained() -> None:
    appraisal = Appraisal(setup(), BASELINE)
    fits = candidate(file("a", 0.1, (0, 60)), trained=False)
    standing = appraisal.standing(fits)
    assert (standing.possible, standing.loss) == (True, None)
    assert standing.cost == pytest.approx(0.25)
    assert appraisal.line(fits) == "untrained, 0.1 ms, 50.0 kB"
    over = candidate(file("b", 0.1, (0, 0), 200_000), trained=False)
    assert not appraisal.standing(over).possible and appraisal.line(over).endswith("over the budget")
    fits.behind = "pruned30"
    assert not appraisal.standing(fits).possible
    trained = appraisal.standing(candidate(file("c", 0.1, (0, 36))))
    assert trained.loss == pytest.approx(0.1) and trained.spread > 0


def test_a_tally_counts_each_outcome_once_and_a_failure_ends_one_candidate() -> None:
    steps = [MadeStep(outcome("teacher", 100)), MadeStep(outcome("teacher.fp32", 2))]
    tally = Tally(steps, steps[1].outcome.variant, outcome("baseline", 50))
    assert tally.seconds == 2, "the teacher and the baseline are there before the search"
    made = candidate()
    tally.candidates.append(made)
    tally.add_step(outcome("pruned40-r1", 5), (), made)
    tally.count(outcome("ask", 3))
    assert (tally.seconds, made.seconds, len(tally.steps)) == (10, 5, 3)
    assert tally.variant("pruned40-r1").name == "pruned40-r1"

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
