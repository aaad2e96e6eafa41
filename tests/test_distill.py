"""The distill stage: student and control start equal, get the same budget, and differ by the teacher alone."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from model_registry.store import Store
from model_registry.variant import Variant
from tasks.distill import STAGE, DistillSpec, distill_child
from tasks.running.child import Child, Result
from tasks.running.errors import WorkloadError
from tasks.running.stage_cache import run_stage
from tasks.torch_models.fit import fit
from tasks.torch_models.fit_rows import evaluate, predict
from tasks.torch_models.model_structure import ModelStructure
from tasks.torch_models.torch_variant import build, load, parameter_count, save
from tasks.workloads.workload import Workload

if TYPE_CHECKING:
    from taught_workloads import job_for, put_data, taught
else:  # tests/ is no package at run time
    from taught_workloads import job_for, put_data, taught

_numbers = itertools.count()
QUICK = {"epochs": 3, "batch_size": 32, "scale": {"width": 0.5}}


def teacher_of(store: Store, workload: Workload, *, sure_of: int | None = None) -> Variant:
    """A teacher; ``sure_of``: one that always answers this class."""
    model = build(workload, "teacher", {}, seed=9)
    if sure_of is not None:
        with torch.no_grad():
            model.get_parameter("head.bias").copy_(torch.eye(3)[sure_of] * 50)
    sample = workload.splits()["validation"]
    structure = ModelStructure(role="teacher")
    return save(store, model, workload=workload, structure=structure, sample=sample, name="teacher", stage="train")


def distilled(
    store: Store,
    workload: Workload,
    teacher: Variant,
    *others: Variant,
    key: str = "",
    parent: Variant | None = None,
    name: str = "",
    **spec: Any,
) -> Result:
    """The stage's entry in this process; each call has checkpoints of its own unless it is given a key."""
    asked = DistillSpec(**{**QUICK, **spec})
    inputs = {"teacher": teacher} | {f"teacher{n}": other for n, other in enumerate(others, 2)}
    if parent is not None:
        inputs["parent"] = parent
    messages = os.open(os.devnull, os.O_WRONLY)
    try:
        return distill_child.main(
            Child(
                {
                    "job": job_for(store, workload.ref).model_dump(mode="json"),
                    "spec": asked.model_dump(mode="json"),
                    "data": put_data(store, workload).model_dump(mode="json"),
                    "inputs": {role: v.model_dump(mode="json", by_alias=True) for role, v in inputs.items()},
                    "extra": {"name": name} if name else {},
                    "key": key or f"k{next(_numbers)}",
                    "workdir": "unused",
                },
                messages,
            )
        )
    finally:
        os.close(messages)


def test_the_stage_makes_a_student_and_its_control(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path))
    workload = taught("Squares")
    teacher = teacher_of(store, workload)
    outcome = run_stage(
        STAGE,
        job_for(store, workload.ref),
        DistillSpec(**QUICK),
        data=put_data(store, workload),
        inputs={"teacher": teacher},
    )
    assert [(v.name, v.stage, v.format) for v in outcome.variants] == [
        ("student", "distill", "torch"),
        ("control", "distill", "torch"),
    ]
    splits = workload.splits()
    for variant in outcome.variants:
        model = load(store, variant, workload=workload)
        metric = evaluate(model, workload=workload, columns=splits["validation"], device="cpu")[1]
        facts = outcome.values[variant.name]
        assert (facts["val_metric"], facts["parameters"], facts["epochs"]) == (metric, parameter_count(model), 3)
        curves = outcome.file(f"{variant.name}.history.jsonl")
        assert curves is not None
        assert [json.loads(row)["epoch"] for row in store.fetch_bytes(curves).splitlines()] == [1, 2, 3]
    model = load(store, teacher, workload=workload)
    assert facts["parameters"] < 0.3 * parameter_count(model)
    metric = evaluate(model, workload=workload, columns=splits["validation"], device="cpu")[1]
    assert outcome.values["teacher"]["val_metric"] == metric
    assert outcome.values["metric"] == "accuracy"
    student, control = (outcome.values[name]["val_metric"] for name in ("student", "control"))
    assert outcome.values["gain"] == pytest.approx(student - control)
    low, high = outcome.values["gain_interval"]
    assert low <= outcome.values["gain"] <= high
    assert 0 <= outcome.values["gain_p"] <= 1


def test_without_the_teachers_share_student_and_control_are_the_same(store: Store) -> None:
    """Same seed, same initial weights, same batches: only alpha makes the difference."""
    workload = taught("Blobs", dropout=0.2)
    teacher = teacher_of(store, taught("Blobs", dropout=0.2), sure_of=None)
    result = distilled(store, workload, teacher, alpha=0.0)
    student, control = result.variants
    assert student.digest == control.digest
    assert result.values["gain"] == 0
    assert {f.path for f in result.files} == {"student.history.jsonl", "control.history.jsonl"}
    student, control = distilled(store, workload, teacher, alpha=0.5).variants
    assert student.digest != control.digest


def test_the_student_follows_the_teacher_even_where_it_is_wrong(store: Store) -> None:
    workload = taught("Blobs")
    result = distilled(store, workload, teacher_of(store, workload, sure_of=2), alpha=1.0, epochs=6)
    columns = workload.splits()["test"]
    student, control = (
        predict(load(store, v, workload=workload), workload=workload, columns=columns, device="cpu").argmax(1)
        for v in result.variants
    )
    assert set(student) == {2}
    assert set(control) == {0, 1, 2}
    assert result.values["gain"] < 0


def test_a_regression_is_distilled_by_its_outputs_and_gains_when_the_error_falls(store: Store) -> None:
    workload = taught("Sums")
    result = distilled(store, workload, teacher_of(store, workload), alpha=1.0)
    student, control = (result.values[name]["val_metric"] for name in ("student", "control"))
    assert student > control  # the untrained teacher misleads, and this metric is an error
    assert result.values["gain"] == pytest.approx(control - student)
    assert result.values["metric"] == "mse"


def test_a_scale_that_the_workload_does_not_know_is_told(store: Store) -> None:
    workload = taught("Blobs")
    with pytest.raises(WorkloadError, match=r"role 'student' with scale \{'depth': 1\}"):
        distilled(store, workload, teacher_of(store, workload), scale={"depth": 1})


def test_a_finished_student_is_not_trained_again_after_a_kill(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    workload = taught("Blobs")
    teacher = teacher_of(store, workload)
    whole = distilled(store, workload, teacher)

    def killed(*given: Any, **arguments: Any) -> Any:
        if "control" in str(arguments["checkpoints"].key):
            raise KeyboardInterrupt
        return fit(*given, **arguments)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("tasks.distill.lessons.fit", killed)
        distilled(store, workload, teacher, key="killed")
    capsys.readouterr()
    again = distilled(store, workload, teacher, key="killed")
    assert [v.digest for v in again.variants] == [v.digest for v in whole.variants]
    said = capsys.readouterr().out
    assert "going on from the checkpoint after epoch 3" in said
    assert said.count("epoch 1/3") == 1  # the control's
    assert again.values.pop("epoch_seconds") > 0 and whole.values.pop("epoch_seconds") > 0  # a clock's: never the same
    np.testing.assert_equal(again.values, whole.values)
