"""How long candidates of a search are trained, and by what, where the spec says nothing."""

from __future__ import annotations

import pytest
from search_pieces import candidate, setup

from flows.searching.training_plan import LABELS, TrainingPlan, learned_by_heart, questions_of
from tasks.ask import AskSpec


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


def test_time_is_left_for_narrower_ones_that_begin_with_what_is_learned() -> None:
    trained, narrower = candidate(), candidate(trained=False)
    plan = TrainingPlan(setup(minutes=10), [trained, narrower])
    trained.row_seconds = 0.01
    plan.decide_epochs(trained)
    trained.rung, trained.epochs, trained.training_seconds = 2, [1, 4], 29.0  # 8 s each
    plan.left = 425.0
    narrower.base = trained.name
    assert plan.next_epochs(trained) == 30, "six tenths of it, less what measuring takes"
    narrower.behind = "another"
    assert plan.next_epochs(trained) == 45, "that one is not trained"


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


def test_what_is_learned_by_heart_is_mixed_in_long_trainings() -> None:
    plan = TrainingPlan(setup(minutes=10))
    trained = candidate()
    trained.row_seconds = 0.01
    plan.decide_epochs(trained)
    mixes = plan.mixes(0.002, augments=False)  # 2 s for the rows
    plan.decide_mix(mixes[1])
    assert plan.training(trained, 20).views is None
    found = {"views_of": "mixed", "student": {"train_metric": 0.95, "val_metric": 0.9}}
    assert learned_by_heart(found, "higher", 0.02) and not learned_by_heart(found, "higher", 0.03)
    assert not learned_by_heart(found, "lower", 0.02), "an error that is larger on what it learned from"
    assert not learned_by_heart({**found, "views_of": "augmented"}, "higher", 0.02)
    plan.by_heart = True
    assert plan.training(trained, 20).views == 4 and plan.training(trained, 7).views is None
    plan.left = 30.0
    assert plan.training(trained, 20).views == 3, "a fifth of what is left"
    plan.decide_mix(LABELS)
    assert plan.training(trained, 20).views is None, "labels know nothing of mixtures"


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
