"""Losses: the distillation formula, its scale under the temperature, and whose answers are used."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softmax

from tasks.torch_models.objective import (
    Hard,
    LiveAnswers,
    StoredAnswers,
    TrainingBatch,
    distillation,
    mean_answers,
    soft_label_loss,
    soft_target_loss,
)


def batch(rows: int = 6, classes: int = 4) -> tuple[Tensor, Tensor, TrainingBatch]:
    """Student logits, teacher logits and the batch they answer: rows 3, 4, 5, ... of the training split."""
    random = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, rows, classes, generator=random)
    targets = torch.arange(rows) % classes
    return student, teacher, TrainingBatch({"x": torch.zeros(rows, 1)}, targets, torch.arange(rows) + 3)


def test_soft_targets_are_the_kl_divergence_times_the_squared_temperature() -> None:
    student, teacher, _ = batch()
    wanted, learned = softmax(teacher / 3, 1), softmax(student / 3, 1)
    by_hand = 9 * (wanted * (wanted / learned).log()).sum(1).mean()
    assert soft_target_loss(student, teacher, temperature=3.0) == pytest.approx(float(by_hand), rel=1e-5)


def test_agreeing_with_the_teacher_costs_nothing() -> None:
    _, teacher, _ = batch()
    assert float(soft_target_loss(teacher + 5.0, teacher, temperature=2.0)) == pytest.approx(0.0, abs=1e-6)


def test_the_gradient_keeps_its_size_under_high_temperatures() -> None:
    """Hinton 2015: in the limit it is (student - teacher) / classes for centred logits, whatever the temperature."""
    student, teacher, _ = batch()
    student, teacher = student - student.mean(1, keepdim=True), teacher - teacher.mean(1, keepdim=True)
    for temperature in (100.0, 1000.0):
        leaf = student.clone().requires_grad_()
        soft_target_loss(leaf, teacher, temperature=temperature).backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad, (student - teacher) / 4 / 6, rtol=0.05, atol=1e-3)


def test_extra_dimensions_are_positions() -> None:
    """Logits [N, C, L] of a sequence count each position like a row of its own."""
    student, teacher, _ = batch()
    apart = soft_target_loss(student, teacher, temperature=2.0)
    joined = soft_target_loss(
        student.reshape(2, 3, 4).transpose(1, 2), teacher.reshape(2, 3, 4).transpose(1, 2), temperature=2.0
    )
    assert float(joined) == pytest.approx(float(apart), rel=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_alpha_is_the_teachers_share(alpha: float) -> None:
    student, teacher, asked = batch()
    answers = StoredAnswers(torch.cat([torch.full((3, 4), 99.0), teacher]))
    goal = distillation(cross_entropy, answers, task="classes", temperature=2.0, alpha=alpha)
    soft, hard = soft_target_loss(student, teacher, temperature=2.0), cross_entropy(student, asked.targets)
    assert float(goal(student, asked)) == pytest.approx(float(alpha * soft + (1 - alpha) * hard), rel=1e-6)


def test_regression_matches_the_teachers_outputs() -> None:
    student, teacher, asked = batch()
    answers = StoredAnswers(torch.cat([torch.zeros(3, 4), teacher]))
    goal = distillation(nn.functional.mse_loss, answers, task="regression", temperature=2.0, alpha=1.0)
    assert float(goal(student, asked)) == pytest.approx(float(((student - teacher) ** 2).mean()), rel=1e-6)


def test_alpha_1_needs_no_targets() -> None:
    def no_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        raise AssertionError("asked for the hard loss")

    student, teacher, asked = batch()
    answers = StoredAnswers(torch.cat([torch.zeros(3, 4), teacher]))
    goal = distillation(no_loss, answers, task="classes", temperature=1.0, alpha=1.0)
    assert torch.isfinite(goal(student, asked))


def test_a_live_teacher_answers_the_augmented_inputs_without_gradient() -> None:
    class Double(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    asked = TrainingBatch({"x": torch.ones(2, 3)}, torch.zeros(2), torch.arange(2))
    answer = LiveAnswers(Double())(asked)
    assert answer.tolist() == [[2.0] * 3] * 2
    assert not answer.requires_grad


def test_several_teachers_answer_the_mean_of_their_logits() -> None:
    """Which is the geometric mean of their probabilities, renormalised, at any temperature."""
    one, two, asked = batch()
    rows = [torch.cat([torch.zeros(3, 4), logits]) for logits in (one, two)]
    both = mean_answers([StoredAnswers(outputs) for outputs in rows])
    for temperature in (1.0, 4.0):
        geometric = (softmax(one / temperature, 1) * softmax(two / temperature, 1)).sqrt()
        wanted = geometric / geometric.sum(1, keepdim=True)
        torch.testing.assert_close(softmax(both(asked) / temperature, 1), wanted)
    alone = StoredAnswers(rows[0])
    assert mean_answers([alone]) is alone


def test_hard_is_the_workloads_loss() -> None:
    student, _, asked = batch()
    assert Hard(cross_entropy)(student, asked) == cross_entropy(student, asked.targets)


def test_one_logit_teaches_as_the_two_classes_that_it_stands_for() -> None:
    student, teacher = torch.randn(32, 1), 3 * torch.randn(32, 1)
    pairs = [torch.cat([torch.zeros_like(logit), logit], dim=1) for logit in (student, teacher)]
    found = soft_label_loss(student, teacher, temperature=2.0)
    assert float(found) == pytest.approx(float(soft_target_loss(pairs[0], pairs[1], temperature=2.0)), rel=1e-5)
    assert float(soft_target_loss(student, teacher, temperature=2.0)) == 0.0  # one column: nothing to learn
    assert float(soft_label_loss(teacher[:, 0], teacher, temperature=2.0)) == pytest.approx(0.0, abs=1e-6)


def test_several_labels_are_taught_one_by_one() -> None:
    student, teacher, asked = batch()
    answers = StoredAnswers(torch.cat([torch.zeros(3, 4), teacher]))
    goal = distillation(cross_entropy, answers, task="labels", temperature=2.0, alpha=1.0)
    one_by_one = [soft_label_loss(student[:, i], teacher[:, i], temperature=2.0) for i in range(4)]
    assert float(goal(student, asked)) == pytest.approx(float(sum(one_by_one)) / 4, rel=1e-5)
