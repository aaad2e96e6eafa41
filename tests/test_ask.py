"""Teachers are asked before anybody learns from them, and a training then asks nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

import pytest

from flows.lineage import MadeStep
from flows.searching import rung_trainer
from flows.searching.candidate import Candidate
from flows.searching.rung_trainer import RungTrainer
from flows.searching.search_setup import SearchSetup
from flows.searching.tally import Tally
from flows.searching.training_plan import TrainingPlan
from flows.spec import PipelineSpec
from model_registry.manifest import FileEntry
from model_registry.store import Store
from model_registry.variant import Variant
from tasks.ask import AskSpec, ask, ask_child
from tasks.running.child import Child, Result
from tasks.running.errors import TrainingDiverged
from tasks.running.stage import Job, Outcome
from tasks.running.stage_plan import Plan, planning
from tasks.workloads.workload import Workload

if TYPE_CHECKING:
    from taught_workloads import job_for, put_data, taught
    from test_distill import distilled, teacher_of
else:  # tests/ is no package at run time
    from taught_workloads import job_for, put_data, taught
    from test_distill import distilled, teacher_of


def asked(store: Store, workload: Workload, *teachers: Variant, views: int | None = None) -> Result:
    messages = os.open(os.devnull, os.O_WRONLY)
    try:
        return ask_child.main(
            Child(
                {
                    "job": job_for(store, workload.ref).model_dump(mode="json"),
                    "spec": AskSpec(views=views).model_dump(mode="json"),
                    "data": put_data(store, workload).model_dump(mode="json"),
                    "inputs": {f"t{n}": t.model_dump(mode="json", by_alias=True) for n, t in enumerate(teachers)},
                    "extra": {},
                    "key": "k",
                    "workdir": "unused",
                },
                messages,
            )
        )
    finally:
        os.close(messages)


def answers(store: Store) -> list[str]:
    return store.list_records("teacher-answers/")


@pytest.mark.parametrize(
    ("name", "views", "questions", "rows"),
    [("Blobs", None, 2, 300), ("NoisyBlobs", 3, 4, 700), ("NoisyBlobs", None, 1, 100)],
)
def test_a_training_finds_every_answer_it_wants(
    store: Store, name: str, views: int | None, questions: int, rows: int
) -> None:
    """Fresh augmentation leaves only validation to ask about."""
    workload = taught(name)
    teachers = [teacher_of(store, workload, sure_of=c) for c in (1, 2)]
    result = asked(store, workload, *teachers, views=views)
    assert result.values == {"answers": rows}
    before = answers(store)
    assert len(before) == questions * len(teachers)
    distilled(store, workload, *teachers, control=False, views=views)
    assert answers(store) == before


@pytest.mark.parametrize(("kind", "alpha", "times"), [("torch", 0.5, 1), ("torch", 0.0, 0), ("onnx", 0.5, 0)])
def test_a_search_asks_torch_teachers_once_and_only_where_they_teach(
    store: Store, monkeypatch: pytest.MonkeyPatch, kind: Literal["torch", "onnx"], alpha: float, times: int
) -> None:
    workload = taught("NoisyBlobs")
    distill = {"views": 3, "alpha": alpha, "epochs": 4}
    spec = PipelineSpec.model_validate(
        {"model": "m", "workload": workload.ref, "search": {}, "distill": distill, "budget": {"max_bytes": 1}}
    )
    teacher = Variant(
        name="teacher",
        stage="train",
        format=kind,
        files=(FileEntry(path="f", sha256="a" * 64, size=1),),
        inputs=(),
        outputs=(),
    )
    made = {"status": "computed", "seconds": 0, "key": "k", "version": "v"}
    trained = Outcome.model_validate({"stage": "train", "name": "train", "variants": (teacher,), **made})
    setup = SearchSetup(job_for(store, workload.ref), spec, put_data(store, workload), trained)
    said: list[AskSpec] = []

    def answer(_job: Job, spec: AskSpec, **_: object) -> Outcome:
        said.append(spec)
        return Outcome.model_validate({"stage": "ask", "name": "ask", "cost_seconds": 5, **made})

    def diverge(*_: object, **__: object) -> Outcome:
        raise TrainingDiverged("the loss became nan")

    monkeypatch.setattr(rung_trainer, "ask", answer)
    monkeypatch.setattr(rung_trainer, "distill", diverge)
    tally = Tally([MadeStep(trained)], teacher, trained)
    unused: Any = None
    trainer = RungTrainer(TrainingPlan(setup), tally, appraisal=unused, forms=unused)
    for name in ("pruned50", "pruned25"):
        candidate = Candidate(name, "pruned", "", {}, 3, model=teacher)
        trainer.advance(candidate)
        assert candidate.failure == "TrainingDiverged: the loss became nan"
    assert (tally.seconds, tally.trials) == (5 * times, 2)
    assert said == [AskSpec(views=3, validation=False)] * times


def test_it_is_a_step_of_its_own_in_a_plan(store: Store) -> None:
    workload, plan = taught("Blobs"), Plan()
    token = planning.set(plan)
    try:
        teacher = teacher_of(store, workload)
        ask.task.fn(
            job_for(store, workload.ref), AskSpec(), data=put_data(store, workload), teachers=(teacher, teacher)
        )
    finally:
        planning.reset(token)
    assert [line.name for line in plan.lines] == ["ask"]
