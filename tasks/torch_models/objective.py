"""What training minimises: the workload's own loss, or the teacher's answers mixed into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.running.task_kind import BY_SIGMOID, BY_SOFTMAX, TaskKind
from tasks.torch_models.views import View

HardLoss = Callable[[Tensor, Tensor], Tensor]
"""``(outputs [N, ...], targets [N, ...]) -> scalar``."""


@dataclass(frozen=True)
class TrainingBatch:
    """One batch as the objective sees it.

    ``inputs``: what the model was called with (augmented and preprocessed). ``targets``: [N, ...]. ``index``: int64
    [N], rows of the training split. ``view``: the augmented view that they are of, if of one.
    """

    inputs: dict[str, Tensor]
    targets: Tensor
    index: Tensor
    view: View | None = None


class Objective(Protocol):
    """A scalar to minimise, from the model's outputs and the batch that they answer.

    One that is an ``nn.Module`` too has parameters of its own, which are trained along with the model's. One that has
    ``around(model)`` says what is called in training in the model's place, a module around it that answers as it does
    where it is judged: what is learned may need more than the model's outputs.
    """

    def __call__(self, outputs: Tensor, batch: TrainingBatch) -> Tensor: ...


class TeacherAnswers(Protocol):
    """What the teacher says about a batch: outputs [N, ...], without gradient."""

    def __call__(self, batch: TrainingBatch) -> Tensor: ...


def called_in_training(model: nn.Module, objective: Objective | None) -> nn.Module:
    """The model, or what the objective puts around it."""
    around = getattr(objective, "around", None)
    return model if around is None else around(model)


@dataclass(frozen=True)
class Hard:
    """The workload's loss on the targets alone."""

    loss: HardLoss

    def __call__(self, outputs: Tensor, batch: TrainingBatch) -> Tensor:
        return self.loss(outputs, batch.targets)


@dataclass(frozen=True)
class SoftTargets:
    """Distillation of a classifier: ``alpha * T^2 * KL(teacher_T || student_T) + (1 - alpha) * hard``.

    Both distributions are softened by the temperature T, over dimension 1 or, where each answer is a logit of its own
    (``by_sigmoid``), one by one; T^2 keeps the gradient's size independent of T (Hinton, Vinyals, Dean 2015,
    "Distilling the knowledge in a neural network", section 2).
    """

    loss: HardLoss
    teacher: TeacherAnswers
    temperature: float
    alpha: float
    by_sigmoid: bool = False

    def __call__(self, outputs: Tensor, batch: TrainingBatch) -> Tensor:
        divergence = soft_label_loss if self.by_sigmoid else soft_target_loss
        soft = divergence(outputs, self.teacher(batch), temperature=self.temperature)
        return _mix(soft, self.loss, outputs, batch, self.alpha)


@dataclass(frozen=True)
class MatchOutputs:
    """Distillation of anything else: ``alpha * mean((student - teacher)^2) + (1 - alpha) * hard``."""

    loss: HardLoss
    teacher: TeacherAnswers
    alpha: float

    def __call__(self, outputs: Tensor, batch: TrainingBatch) -> Tensor:
        soft = functional.mse_loss(outputs, self.teacher(batch).to(outputs.dtype))
        return _mix(soft, self.loss, outputs, batch, self.alpha)


def distillation(
    loss: HardLoss, teacher: TeacherAnswers, *, task: TaskKind, temperature: float, alpha: float
) -> Objective:
    """Soft targets where answers are logits, else matched outputs; ``alpha`` is the teacher's share (0 to 1)."""
    if task in BY_SOFTMAX or task in BY_SIGMOID:
        return SoftTargets(loss, teacher, temperature, alpha, by_sigmoid=task in BY_SIGMOID)
    return MatchOutputs(loss, teacher, alpha)


def soft_target_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """``T^2 * KL(teacher_T || student_T)`` of logits [N, C, ...], averaged over all but the classes; a scalar."""
    learned = functional.log_softmax(student.float() / temperature, dim=1)
    wanted = functional.log_softmax(teacher.float() / temperature, dim=1)
    divergence = functional.kl_div(learned, wanted, log_target=True, reduction="none").sum(dim=1).mean()
    return divergence * temperature**2


def soft_label_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """``T^2 * KL(teacher_T || student_T)`` of logits that each are a question of its own, [N, ...]; their mean.

    Of one logit it is :func:`soft_target_loss` of the pair (0, logit).
    """
    learned, wanted = student.float() / temperature, teacher.float().reshape(student.shape) / temperature
    on, off = functional.logsigmoid(wanted), functional.logsigmoid(-wanted)
    divergence = on.exp() * (on - functional.logsigmoid(learned)) + off.exp() * (off - functional.logsigmoid(-learned))
    return divergence.mean() * temperature**2


@dataclass(frozen=True)
class StoredAnswers:
    """The teacher's outputs on the whole training split [rows, ...], computed once; for unaugmented training."""

    outputs: Tensor

    def __call__(self, batch: TrainingBatch) -> Tensor:
        return self.outputs[batch.index.to(self.outputs.device)].to(batch.targets.device)


@dataclass(frozen=True)
class StoredViews:
    """The teacher's outputs on each augmented view of the training split, [rows, ...] each."""

    outputs: tuple[Tensor, ...]

    def __call__(self, batch: TrainingBatch) -> Tensor:
        # Before training the objective is tried on rows as they are; any view's answers have the right shape.
        outputs = self.outputs[0 if batch.view is None else batch.view.number]
        return outputs[batch.index.to(outputs.device)].to(batch.targets.device)


@dataclass(frozen=True)
class LiveAnswers:
    """The teacher asked for each batch: needed where fresh augmentation changes what it is asked."""

    model: nn.Module

    def __call__(self, batch: TrainingBatch) -> Tensor:
        with torch.no_grad():
            outputs: Tensor = self.model(**batch.inputs)
        return outputs


@dataclass(frozen=True)
class MeanAnswers:
    """The mean of several teachers' outputs."""

    teachers: tuple[TeacherAnswers, ...]

    def __call__(self, batch: TrainingBatch) -> Tensor:
        return torch.stack([teacher(batch) for teacher in self.teachers]).mean(dim=0)


def mean_answers(teachers: Sequence[TeacherAnswers]) -> TeacherAnswers:
    """Several teachers as one, who answers the mean of their outputs.

    The mean of logits is the geometric mean of the softened probabilities, renormalised, at every temperature alike;
    Hinton et al. 2015, section 1, take the arithmetic or the geometric mean of an ensemble's predictions. This one
    needs no temperature, can be stored, and holds for regression too.
    """
    return teachers[0] if len(teachers) == 1 else MeanAnswers(tuple(teachers))


def _mix(soft: Tensor, loss: HardLoss, outputs: Tensor, batch: TrainingBatch, alpha: float) -> Tensor:
    if alpha == 1.0:  # no targets needed
        return soft
    if batch.view is not None and not batch.view.labelled:  # they say nothing
        return alpha * soft
    return alpha * soft + (1.0 - alpha) * loss(outputs, batch.targets)
