"""Which mix of labels and teacher a search learns from, and the teacher's own further training."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from search_pieces import appraise, candidate, file, outcome, setup

from flows.lineage import MadeStep
from flows.searching import mix_choice
from flows.searching.mix_choice import MixChoice
from flows.searching.search import _better_teacher
from flows.searching.tally import Tally
from flows.searching.training_plan import LABELS, TrainingPlan
from tasks.running.errors import TrainingDiverged
from tasks.running.stage import Outcome

MIXES = (LABELS, {"alpha": 0.5, "temperature": 4.0, "views": None}, {"alpha": 0.9, "temperature": 4.0, "views": None})


class Trainings:
    """Metrics on validation by share of the teacher's answers; another teacher adds ``better`` to what it taught, a
    lower learning rate ``slower``, SGD ``momentum``; the loss falls to ``fell`` of that after one epoch."""

    def __init__(
        self,
        metrics: Mapping[float, float | None],
        *,
        better: float = 0.0,
        slower: float | None = None,
        diverges: bool = False,
        momentum: float | None = None,
        fell: float = 1.0,
        **search: Any,
    ) -> None:
        said: dict[str, Any] = {"epochs": 39} | ({"learning_rate": 4e-3} if slower is None else {})
        said |= {"optimizer": "adamw"} if momentum is None else {}
        self.plan = TrainingPlan(setup(minutes=10, distill=said, **search))
        self.slower, self.momentum, self.diverges, self.fell = slower or 0.0, momentum or 0.0, diverges, fell
        steps = [MadeStep(outcome("teacher")), MadeStep(outcome("teacher.fp32"))]
        self.tally = Tally(steps, steps[1].outcome.variant, outcome("baseline"))
        self.tally.candidates.append(candidate())
        self.tally.candidates[0].row_seconds = 0.01  # 10 s an epoch
        self.metrics, self.better, self.made = metrics, better, list[tuple[float, str]]()

    def train(self, _: Any, mix: Mapping[str, Any]) -> Outcome:
        alpha, teacher = float(mix["alpha"]), self.plan.teachers[0].name
        self.made.append((alpha, teacher))
        metric, slowly = self.metrics[alpha], mix.get("learning_rate", 1.0) < 4e-3
        if metric is None or (self.diverges and not slowly):
            raise TrainingDiverged("NaN")
        metric += (self.slower if slowly else 0.0) + (self.momentum if "optimizer" in mix else 0.0)
        metric += self.better if alpha and teacher != "teacher" else 0.0
        found = {"val_metric": metric, "val_loss": 0.1, "first_val_loss": 0.1 / self.fell}
        return outcome("s").model_copy(update={"values": {"student": found}})

    def choose(self) -> MixChoice:
        choice = MixChoice(self.plan, self.tally, self.train)
        choice.choose(self.tally.candidates[0], MIXES)
        return choice


@pytest.fixture
def taught_on(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The teacher's further trainings; each makes it better on validation."""
    asked: list[dict[str, Any]] = []

    def distill(job: Any, spec: Any, **given: Any) -> Outcome:
        asked.append({"spec": spec, **given})
        values = {"parent": {"val_metric": 0.8}, "student": {"val_metric": 0.9}}
        return outcome(given["label"], 50.0).model_copy(update={"values": values})

    monkeypatch.setattr(mix_choice, "distill", distill)
    return asked


def test_the_best_mix_on_validation_is_that_of_all_others() -> None:
    tried = Trainings({0.0: 0.8, 0.5: 0.85, 0.9: 0.83})
    tried.choose()
    assert tried.plan.distilling.alpha == 0.5
    assert [(m.alpha, m.chosen) for m in tried.tally.mixes] == [(0.0, False), (0.5, True), (0.9, False)]
    assert tried.tally.trials == 2, "besides the first, which is counted where it begins"


def test_one_that_diverges_is_passed_over_and_all_that_do_fail_the_candidate() -> None:
    tried = Trainings({0.0: 0.8, 0.5: None, 0.9: 0.83})
    tried.choose()
    assert tried.plan.distilling.alpha == 0.9 and len(tried.tally.mixes) == 2
    failing = Trainings({0.0: None, 0.5: None, 0.9: None})
    with pytest.raises(TrainingDiverged):
        failing.choose()
    assert failing.tally.trials == 2, "besides the first"


@pytest.mark.parametrize(("slower", "rate"), [(0.01, 1e-3), (-0.01, 4e-3)])
def test_the_best_mix_is_tried_at_a_lower_learning_rate_too(slower: float, rate: float) -> None:
    tried = Trainings({0.0: 0.8, 0.5: 0.85, 0.9: 0.83}, slower=slower)
    tried.choose()
    assert tried.plan.distilling.alpha == 0.5 and tried.plan.distilling.learning_rate == pytest.approx(rate)
    assert [m.learning_rate for m in tried.tally.mixes] == pytest.approx([4e-3, 4e-3, 4e-3, 1e-3])
    assert tried.tally.trials == 3


def test_where_the_loss_fell_well_no_lower_learning_rate_is_tried() -> None:
    tried = Trainings({0.0: 0.8, 0.5: 0.85, 0.9: 0.83}, slower=0.01, fell=0.8)
    tried.choose()
    assert tried.tally.trials == 2 and tried.plan.distilling.learning_rate == pytest.approx(4e-3)


@pytest.mark.parametrize(("momentum", "chosen"), [(0.016, "sgd"), (0.014, "adamw")])  # half the margin is 0.015
def test_where_the_loss_fell_well_sgd_is_tried_once(momentum: float, chosen: str) -> None:
    tried = Trainings({0.0: 0.8, 0.5: 0.85, 0.9: 0.83}, slower=0.0, momentum=momentum, fell=0.8)
    tried.choose()
    spec = tried.plan.distilling
    assert tried.tally.trials == 3 and (spec.alpha, spec.optimizer) == (0.5, chosen)
    assert (spec.learning_rate, spec.weight_decay) == ((0.1, 5e-4) if chosen == "sgd" else (4e-3, 0.01))
    assert [(m.optimizer, m.chosen) for m in tried.tally.mixes[-1:]] == [("sgd", chosen == "sgd")]


def test_where_less_of_the_teacher_does_better_no_more_of_it_is_tried() -> None:
    tried = Trainings({0.0: 0.9, 0.5: 0.85, 0.9: 0.95})
    tried.choose()
    assert [alpha for alpha, _ in tried.made] == [0.0, 0.5] and tried.plan.distilling.alpha == 0.0


def test_where_all_diverge_the_lower_learning_rate_is_the_way_out() -> None:
    tried = Trainings({0.0: 0.8, 0.5: 0.85, 0.9: 0.83}, slower=0.0, diverges=True)
    tried.choose()
    assert tried.plan.distilling.alpha == 0.0 and tried.plan.distilling.learning_rate == pytest.approx(1e-3)
    assert tried.tally.trials == 3


def test_a_teacher_that_holds_its_pupils_back_is_left_as_it_is_unless_the_spec_allows_more(
    taught_on: list[dict[str, Any]],
) -> None:
    tried = Trainings({0.0: 0.9, 0.5: 0.85, 0.9: 0.83})
    tried.choose()
    assert tried.plan.distilling.alpha == 0.0 and not taught_on


def test_a_teacher_that_was_trained_on_teaches_if_it_does_better(taught_on: list[dict[str, Any]]) -> None:
    tried = Trainings({0.0: 0.9, 0.5: 0.85, 0.9: 0.89}, better=0.02, train_teacher=True)
    tried.choose()
    (training,) = taught_on
    assert training["spec"].alpha == 0.0 and training["spec"].epochs == 12  # a fifth of 600 s
    assert training["parent"].name == training["teacher"].name == "teacher"
    assert [teacher for _, teacher in tried.made] == ["teacher"] * 2 + ["teacher-trained-on"] * 2
    chosen = next(m for m in tried.tally.mixes if m.chosen)
    assert (chosen.alpha, chosen.teacher) == (0.9, "teacher-trained-on")
    assert tried.plan.teachers[0].name == "teacher-trained-on"
    assert tried.tally.seconds == 50.0 and tried.tally.trials == 4


def test_labels_stay_where_the_better_teacher_still_teaches_worse(taught_on: list[dict[str, Any]]) -> None:
    tried = Trainings({0.0: 0.95, 0.5: 0.85, 0.9: 0.89}, better=0.02, train_teacher=True)
    tried.choose()
    assert taught_on and tried.plan.distilling.alpha == 0.0 and tried.plan.teachers[0].name == "teacher"


@pytest.mark.parametrize(("gain", "alpha", "who"), [(0.06, 0.5, "pruned10-r2"), (0.01, 0.0, "teacher")])
def test_a_candidate_that_passed_the_teacher_teaches_the_others_if_that_is_better(
    gain: float, alpha: float, who: str
) -> None:
    tried = Trainings({0.0: 0.9, 0.5: 0.85, 0.9: 0.83}, better=gain)
    tried.choose()
    pupil = outcome("pruned10-r2").variant
    choice = MixChoice(tried.plan, tried.tally, tried.train)
    choice.choose_teacher(tried.tally.candidates[0], MIXES[1], pupil)
    assert tried.made[2:] == [(0.5, "pruned10-r2"), (0.0, "teacher")]
    assert tried.plan.distilling.alpha == alpha and tried.plan.teachers[0].name == who
    assert [(m.alpha, m.teacher, m.chosen) for m in tried.tally.mixes[2:]] == [
        (0.5, "pruned10-r2", alpha > 0),
        (0.0, "", alpha == 0),
    ]
    assert tried.tally.trials == 2, "one of the first choice besides its first, one of the second"


def test_where_neither_teacher_nor_labels_train_it_the_teacher_stays() -> None:
    tried = Trainings({0.0: 0.9, 0.5: 0.85, 0.9: 0.83})
    tried.choose()
    tried.metrics = {0.0: None, 0.5: None}
    choice = MixChoice(tried.plan, tried.tally, tried.train)
    with pytest.raises(TrainingDiverged):
        choice.choose_teacher(tried.tally.candidates[0], MIXES[1], outcome("pruned10-r2").variant)
    assert tried.plan.teachers[0].name == "teacher" and len(tried.tally.mixes) == 2


def test_a_teacher_that_takes_too_long_is_not_trained_on_and_that_is_told(taught_on: list[dict[str, Any]]) -> None:
    tried = Trainings({0.0: 0.9, 0.5: 0.85, 0.9: 0.83}, train_teacher=True)
    tried.tally.candidates[0].row_seconds = 1.0
    tried.choose()
    assert not taught_on and "one epoch of it takes about 1000 s" in tried.tally.untried[0]


def test_a_teacher_whose_further_training_diverges_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def distill(*_: Any, **__: Any) -> Outcome:
        raise TrainingDiverged("the loss became NaN")

    monkeypatch.setattr(mix_choice, "distill", distill)
    tried = Trainings({0.0: 0.9, 0.5: 0.85, 0.9: 0.83}, train_teacher=True)
    tried.choose()
    assert tried.plan.distilling.alpha == 0.0 and tried.plan.teachers[0].name == "teacher"
    assert "TrainingDiverged: the loss became NaN" in tried.tally.untried[0]


def test_only_a_candidate_that_beats_a_teacher_who_holds_back_is_tried_in_its_place() -> None:
    appraisal = appraise()
    plan, new = appraisal.plan, candidate(trained=False)
    better, worse = (candidate(file(name, 0.1, flips)) for name, flips in (("better", (6, 0)), ("worse", (0, 20))))
    tally = SimpleNamespace(candidates=[worse, better, new], trials=0)
    shop: Any = SimpleNamespace(plan=plan, tally=tally, setup=appraisal.setup, appraisal=appraisal)
    assert plan.distilling.alpha != 0 and _better_teacher(shop, new) is None, "the teacher does not hold back"
    plan.decide_mix(LABELS)
    assert _better_teacher(shop, new) is better
    assert _better_teacher(shop, worse) is None, "it was trained already"
    tally.candidates.remove(better)
    assert _better_teacher(shop, new) is None
    tally.candidates.append(better)
    plan.passed_on = True
    assert _better_teacher(shop, new) is None, "once"
