"""What distill can do besides: a parent, several teachers, a chosen temperature, hints, no control, no training."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from model_registry.store import Store
from model_registry.variant import Variant
from tasks.distill import DistillSpec, distill, mix_search
from tasks.distill.mix_search import Mix, candidates, search_mix
from tasks.running.child import Result
from tasks.running.errors import SpecError, TrainingDiverged
from tasks.running.stage import WorkloadRef
from tasks.running.stage_plan import Plan, planning
from tasks.torch_models.channel_pruner import ChannelPruner
from tasks.torch_models.fit import Fitted
from tasks.torch_models.fit_rows import evaluate, predict
from tasks.torch_models.model_structure import ModelStructure
from tasks.torch_models.torch_variant import build, load, parameter_count, read_architecture, save
from tasks.workloads.workload import load_workload

if TYPE_CHECKING:
    from taught_workloads import job_for, put_data, taught
    from test_distill import distilled, teacher_of
    from test_text_workload import rows as text_rows
    from test_text_workload import table
else:  # tests/ is no package at run time
    from taught_workloads import job_for, put_data, taught
    from test_distill import distilled, teacher_of
    from test_text_workload import rows as text_rows
    from test_text_workload import table


def test_no_epochs_give_an_untrained_student_and_no_control(store: Store) -> None:
    workload = taught("Blobs")
    result = distilled(store, workload, teacher_of(store, workload), epochs=0, name="small")
    (variant,) = result.variants
    fresh = build(workload, "student", {"width": 0.5}, seed=0)
    kept = load(store, variant, workload=workload)
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, kept.state_dict()[name])
    assert variant.name == "small" and result.files == ()
    assert result.values["student"] == {"parameters": parameter_count(fresh), "epochs": 0}
    assert 0 < result.values["row_seconds"] < 1
    assert not {"control", "gain", "chosen", "teacher"} & result.values.keys()


def test_labels_alone_ask_no_teacher(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("the teacher was asked")

    monkeypatch.setattr("tasks.distill.distill_child.teacher_outputs", asked)
    monkeypatch.setattr("tasks.distill.distill_child.teacher_says", asked)
    workload = taught("Blobs")
    result = distilled(store, workload, teacher_of(store, workload), alpha=0.0, name="alone")
    student, control = (load(store, v, workload=workload) for v in result.variants)
    for name, value in student.state_dict().items():
        assert torch.equal(value, control.state_dict()[name]), "the control has only labels too"
    assert "teacher" not in result.values


def test_without_control_there_is_no_gain(store: Store) -> None:
    workload = taught("Blobs")
    teacher = teacher_of(store, workload)
    result = distilled(store, workload, teacher, control=False, name="w0.5")
    (alone,) = result.variants
    assert (alone.name, [f.path for f in result.files]) == ("w0.5", ["w0.5.history.jsonl"])
    assert not {"control", "gain", "gain_p"} & result.values.keys()
    with_control = distilled(store, workload, teacher, name="w0.5")
    assert [v.name for v in with_control.variants] == ["w0.5", "control-w0.5"]
    assert with_control.variants[0].digest == alone.digest


def pruned_teacher(store: Store) -> Variant:
    """Half of an image classifier, by a plan."""
    workload = taught("Squares")
    model = build(workload, "teacher", {"width": 0.5}, seed=4)
    sample = workload.splits()["validation"]
    pruner = ChannelPruner(model, {"image": torch.from_numpy(sample["image"][:2])}, ratio=0.5)
    pruner.step()
    return save(
        store,
        model,
        workload=workload,
        structure=ModelStructure(role="teacher", scale={"width": 0.5}, pruning=pruner.plan),
        sample=sample,
        name="pruned",
        stage="prune",
    )


def test_a_parent_is_trained_further_and_stays_what_it_is(store: Store) -> None:
    workload = taught("Squares")
    teacher, parent = teacher_of_squares(store), pruned_teacher(store)
    result = distilled(store, workload, teacher, parent=parent, name="tuned")
    student, control = result.variants
    before = read_architecture(store, parent)
    assert before.pruning
    for variant in (student, control):
        after = read_architecture(store, variant)
        assert (after.role, after.scale, after.pruning) == ("teacher", {"width": 0.5}, before.pruning)
    models = [load(store, v, workload=workload) for v in (parent, student, control)]
    assert len({parameter_count(model) for model in models}) == 1
    assert len({student.digest, control.digest, parent.digest}) == 3
    columns = workload.splits()["validation"]
    metric = evaluate(models[0], workload=workload, columns=columns, device="cpu")[1]
    assert result.values["parent"] == {"val_metric": metric}
    assert result.values["student"]["parameters"] == parameter_count(models[0])
    (same,) = distilled(store, workload, teacher, parent=parent, epochs=0).variants
    assert same.digest == parent.digest


def test_a_student_goes_on_where_it_was(store: Store) -> None:
    """Little learning: what was learned before is what is there."""
    workload = taught("Blobs")
    teacher = teacher_of(store, workload)
    first = distilled(store, workload, teacher, alpha=0.0, control=False, epochs=20).variants[0]
    on = distilled(store, workload, teacher, parent=first, alpha=0.0, epochs=1, learning_rate=1e-6, control=False)
    columns = workload.splits()["test"]
    before, after = (
        predict(load(store, v, workload=workload), workload=workload, columns=columns, device="cpu")
        for v in (first, on.variants[0])
    )
    np.testing.assert_allclose(after, before, atol=1e-3)
    assert on.values["parent"]["val_metric"] > 0.7


def teacher_of_squares(store: Store) -> Variant:
    workload = taught("Squares")
    sample = workload.splits()["validation"]
    model = build(workload, "teacher", {}, seed=9)
    structure = ModelStructure(role="teacher")
    return save(store, model, workload=workload, structure=structure, sample=sample, name="teacher", stage="train")


def test_several_teachers_teach_the_mean_of_their_logits(store: Store) -> None:
    workload = taught("Blobs")
    one, two = (teacher_of(store, workload, sure_of=c) for c in (1, 2))
    result = distilled(store, workload, one, two, alpha=1.0, control=False, epochs=25, scale={"width": 1.0})
    columns = workload.splits()["train"]
    outputs = predict(
        load(store, result.variants[0], workload=workload), workload=workload, columns=columns, device="cpu"
    )
    odds = np.exp(outputs - outputs.max(1, keepdims=True))
    shares = (odds / odds.sum(1, keepdims=True)).mean(0)
    assert shares[0] < 0.01 and 0.3 < shares[1] < 0.7  # each of the two is sure of another class
    each = [v["val_metric"] for v in result.values["teachers"]]
    assert len(each) == 2 and set(result.values["teacher"]) == {"val_metric"}
    alone = distilled(store, workload, one, alpha=1.0, control=False)
    assert "teachers" not in alone.values
    three = distilled(store, workload, one, one, one, alpha=1.0, control=False)
    assert three.variants[0].digest == alone.variants[0].digest


def test_temperature_and_alpha_are_chosen_by_short_trainings(store: Store) -> None:
    workload = taught("Blobs")
    teacher = teacher_of(store, workload, sure_of=2)  # mostly wrong: the less of it the better
    auto: dict[str, Any] = {"temperature": "auto", "alpha": "auto", "auto_epochs": 0.5, "epochs": 4}
    result = distilled(store, workload, teacher, **auto)
    tried = result.values["tried"]
    assert [(t["temperature"], t["alpha"]) for t in tried] == list(
        itertools.product(mix_search.TEMPERATURES, mix_search.ALPHAS)
    )
    assert {t["epochs"] for t in tried} == {2}
    best = min(tried, key=lambda t: float(t["val_loss"]))
    assert result.values["chosen"] == {"temperature": best["temperature"], "alpha": best["alpha"]}
    assert best["alpha"] == 0.5
    by_hand = distilled(store, workload, teacher, **{**auto, **result.values["chosen"]})
    assert [v.digest for v in by_hand.variants] == [v.digest for v in result.variants]
    assert by_hand.values["tried"] == []


def test_finished_trials_are_not_trained_again_after_a_kill(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    workload = taught("Blobs")
    teacher = teacher_of(store, workload)
    asked: dict[str, Any] = {"alpha": "auto", "control": False, "epochs": 2, "auto_epochs": 0.5}
    whole = distilled(store, workload, teacher, key="same", **asked)
    capsys.readouterr()
    again = distilled(store, workload, teacher, key="same", **asked)
    assert again.values == whole.values
    assert capsys.readouterr().out.count("going on from the checkpoint") == 3


def test_only_what_is_open_is_tried() -> None:
    assert candidates(3.0, 0.2, softened=True) == (Mix(3.0, 0.2),)
    assert {m.temperature for m in candidates(3.0, "auto", softened=True)} == {3.0}
    assert {m.alpha for m in candidates("auto", 0.7, softened=True)} == {0.7}
    assert candidates("auto", 0.7, softened=False) == (Mix(1.0, 0.7),)


def fitted(*losses: float) -> Fitted:
    rows = [{"epoch": n, "val_loss": loss, "val_metric": 0.5} for n, loss in enumerate(losses, 1)]
    return Fitted([dict(row) for row in rows], 1, 0.5, losses[0], False, 0)  # the best epoch is by accuracy


def test_the_lowest_loss_wins_the_first_among_equals_and_a_diverging_mix_loses() -> None:
    mixes = [Mix(1.0, 0.5), Mix(2.0, 0.5), Mix(4.0, 0.5)]

    def train(number: int, mix: Mix) -> Fitted:
        if number == 0:
            raise TrainingDiverged("too hot")
        return fitted(0.9, 0.4)

    chosen, trials = search_mix(mixes, train)
    assert chosen == mixes[1]
    assert [t.val_loss for t in trials] == [None, 0.4, 0.4]

    def never(number: int, mix: Mix) -> Fitted:
        raise TrainingDiverged("too hot")

    with pytest.raises(TrainingDiverged):
        search_mix(mixes, never)
    assert search_mix(mixes[:1], never) == (mixes[0], [])


def test_hints_are_followed_with_what_was_chosen_told(store: Store) -> None:
    workload = taught("Squares")
    teacher = teacher_of_squares(store)
    plain = distilled(store, workload, teacher, control=False)
    result = distilled(store, workload, teacher, hints={"weight": 2.0})
    student, control = result.variants
    assert result.values["hints"] == [["norm1", "norm1"], ["norm2", "norm2"], ["dense", "dense"]]
    assert student.digest not in (control.digest, plain.variants[0].digest)
    assert (
        load(store, student, workload=workload).state_dict().keys()
        == load(store, control, workload=workload).state_dict().keys()
    )
    named = distilled(store, workload, teacher, hints={"layers": result.values["hints"], "weight": 2.0})
    assert [v.digest for v in named.variants] == [student.digest, control.digest]
    with pytest.raises(SpecError, match="'conv3', which the student ImageClassifier does not have"):
        distilled(store, workload, teacher, hints={"layers": [["conv1", "conv3"]]})


def test_hints_of_attention_are_for_students_that_attend(store: Store, tmp_path: Path) -> None:
    ref = WorkloadRef(path="winnow:Text", arguments={"source": table(tmp_path, text_rows()), "tokens": 16})
    workload = load_workload(ref)
    teacher = teacher_of(store, workload)

    def taught_by(scale: dict[str, Any], hints: dict[str, Any] | None) -> Result:
        return distilled(store, workload, teacher, scale=scale, hints=hints, control=False, epochs=1)

    narrow, hints = {"width": 0.5, "layers": "half"}, {"of": "attention"}
    followed, plain = taught_by(narrow, hints), taught_by(narrow, None)
    theirs, ours = followed.values["hints"][0]
    assert theirs.endswith("attention.query") and ours.endswith("attention.query") and theirs != ours
    assert len(followed.values["hints"]) == 3 and followed.variants[0].digest != plain.variants[0].digest
    bag = {"network": "bag"}
    followed, plain = taught_by(bag, hints), taught_by(bag, None)
    assert followed.values["hints"] == [] and len(followed.variants) == len(plain.variants) == 1


def test_hints_of_the_first_of_several_teachers_and_of_augmented_rows(store: Store) -> None:
    workload = taught("NoisyBlobs")
    one, two = (teacher_of(store, workload, sure_of=c) for c in (None, 1))
    result = distilled(store, workload, one, two, hints={"layers": "auto"}, control=False)
    assert result.values["hints"] == [["dense2", "dense2"]]


def test_students_learn_from_fixed_views_of_an_augmented_split(store: Store) -> None:
    workload = taught("NoisyBlobs")
    teacher = teacher_of(store, workload)
    fresh = distilled(store, workload, teacher, control=False)
    (one,), (same,) = (distilled(store, workload, teacher, control=False, views=2).variants for _ in range(2))
    assert one.digest == same.digest != fresh.variants[0].digest
    answers = store.list_records("teacher-answers/")
    distilled(store, workload, teacher, control=False, views=2, scale={"width": 0.25})
    assert store.list_records("teacher-answers/") == answers, "students share the teacher's answers"


def test_the_spec_refuses_what_makes_no_sense() -> None:
    cases: tuple[dict[str, Any], ...] = (
        {"temperature": 0},
        {"temperature": "warm"},
        {"alpha": 1.5},
        {"epochs": -1},
        {"teachers": 0},
        {"auto_epochs": 0},
        {"views": 0},
        {"hints": {"layers": []}},
        {"hints": {"layers": [["a"]]}},
        {"hints": {"weight": 0}},
    )
    for wrong in cases:
        with pytest.raises(ValidationError):
            DistillSpec(**wrong)
    assert DistillSpec.model_validate({"temperature": "auto", "hints": {}}).hints is not None


def test_the_step_names_roles_and_variants(store: Store) -> None:
    workload = taught("Blobs")
    job, data = job_for(store, workload.ref), put_data(store, workload)
    one, two = (teacher_of(store, workload, sure_of=c) for c in (1, 2))

    def planned(spec: DistillSpec, **arguments: Any) -> tuple[list[str], str, str]:
        plan = Plan()
        token = planning.set(plan)
        try:
            outcome = distill.task.fn(job, spec, data=data, teacher=one, **arguments)
        finally:
            planning.reset(token)
        return [v.name for v in outcome.variants], outcome.name, outcome.key

    spec = DistillSpec()
    assert planned(spec)[:2] == (["student", "control"], "distill")
    assert planned(spec, label="a")[:2] == (["a", "control-a"], "distill:a")
    assert planned(spec.model_copy(update={"control": False}), label="a")[0] == ["a"]
    assert planned(DistillSpec(epochs=0))[0] == ["student"]
    keys = [
        planned(spec, **arguments)[2]
        for arguments in (
            {},
            {"others": (two,)},
            {"parent": two},
            {"label": "a"},
            {"label": "b"},
            {"others": (two, two)},
        )
    ]
    assert len(set(keys)) == len(keys)
