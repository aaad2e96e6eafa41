"""A decoder that learns from a teacher how likely each token comes next, at every place of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from model_registry.store import Store
from model_registry.variant import Variant
from tasks.torch_models.fit_rows import torch_device
from tasks.torch_models.objective import TrainingBatch
from tasks.torch_models.torch_variant import load
from tasks.workloads.causal_decoder import CausalDecoder
from tasks.workloads.causal_lm import CausalLM
from tasks.workloads.workload import Workload

_LOGITS = 1 << 22
"""Logits that are computed at a time: memory that the allocator hands out again, not all of a batch's."""


@dataclass(frozen=True)
class WholeDistributions:
    """What a decoder learns of a teacher: how likely each token of the vocabulary comes next, at every place.

    An objective of :func:`tasks.torch_models.fit.fit`.

    Args:
        teacher: on the device of the training, with the student's vocabulary.
        alpha: its share, see :func:`teaching_loss`.
    """

    teacher: CausalDecoder
    alpha: float

    def around(self, model: nn.Module) -> nn.Module:
        """What is trained in the student's place; :class:`tasks.torch_models.objective.Objective` says what for."""
        assert isinstance(model, CausalDecoder), "whole_distributions() looks at the student"
        return TaughtDecoder(model, self.teacher, self.alpha)

    def __call__(self, outputs: Tensor, batch: TrainingBatch) -> Tensor:
        return outputs.mean()


def whole_distributions(
    store: Store, teachers: Sequence[Variant], student: nn.Module, *, workload: Workload, device: str, alpha: float
) -> WholeDistributions | None:
    """What a decoder is to learn of its teacher; None where the teacher's answers are to be learned as others are.

    That is so for models of another kind, for several teachers (the mean of what they say of the tokens that came is
    learned), for another vocabulary, and where a workload has a loss of its own.

    Args:
        alpha: with 0 nobody is asked.

    Raises:
        SpecError, WorkloadChanged: the teacher cannot be loaded; see :func:`tasks.torch_models.torch_variant.load`.
    """
    if not alpha or not learns_distributions(workload, teachers) or not isinstance(student, CausalDecoder):
        return None
    teacher = load(store, teachers[0], workload=workload)
    if not isinstance(teacher, CausalDecoder) or teacher.shape.vocabulary != student.shape.vocabulary:
        return None
    return WholeDistributions(teacher.to(torch_device(device)).requires_grad_(False), alpha)


def learns_distributions(workload: Workload, teachers: Sequence[Variant]) -> bool:
    """Whether students of these teachers may learn whole distributions, as far as the workload goes."""
    own = getattr(type(workload.user), "loss", None)
    return len(teachers) == 1 and teachers[0].format == "torch" and own is CausalLM.loss


class _Held:
    """A teacher beside a student: no part of it, in its copies neither."""

    def __init__(self, model: CausalDecoder) -> None:
        self.model = model

    def __deepcopy__(self, memo: object) -> _Held:
        return self


class TaughtDecoder(nn.Module):
    """In training it answers what it is yet to learn, in evaluation what the decoder answers.

    Args:
        decoder: what is trained.
        teacher: asked for each batch, on the same device; neither trained nor kept in checkpoints.
        alpha: see :func:`teaching_loss`.
    """

    def __init__(self, decoder: CausalDecoder, teacher: CausalDecoder, alpha: float) -> None:
        super().__init__()
        self.decoder, self.alpha = decoder, alpha
        self._teacher = _Held(teacher)

    def forward(self, tokens: Tensor) -> Tensor:
        """Log-probabilities [N, length - 1] of the tokens; in training [N], each the mean loss of the batch."""
        with parametrize.cached():  # weights are rounded once, though the head's are asked for twice
            if not self.training:
                found: Tensor = self.decoder(tokens)
                return found
            teacher = self._teacher.model
            with torch.no_grad():
                wanted = teacher.states(tokens)[:, :-1].flatten(0, 1)
            states = self.decoder.states(tokens)[:, :-1].flatten(0, 1)
            said = tokens[:, 1:].flatten()
            loss = teaching_loss(states, self.decoder.head_weight, wanted, teacher.head_weight, said, alpha=self.alpha)
        return loss.expand(len(tokens))


def teaching_loss(
    states: Tensor, head: Tensor, wanted: Tensor, teacher_head: Tensor, said: Tensor, *, alpha: float
) -> Tensor:
    """``alpha * KL(teacher || student) + (1 - alpha) * -log student(said)``, the mean over all places; a scalar.

    Hinton, Vinyals, Dean 2015, "Distilling the knowledge in a neural network", over the whole vocabulary. Gradients are
    computed along with it, some places at a time: logits of a batch would take more memory than the model.

    Args:
        states, wanted: what student's and teacher's heads are asked with, [places, features], each its own.
        head, teacher_head: [vocabulary, features].
        said: the tokens that came, int64 [places].
    """
    given = (each.float() if each.dtype is not torch.float64 else each for each in (states, head, wanted, teacher_head))
    with torch.autocast(states.device.type, enabled=False):  # probabilities of a vocabulary need all their digits
        found: Tensor = _Teaching.apply(*given, said, alpha)  # type: ignore[no-untyped-call]
    return found


class _Teaching(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, head: Tensor, wanted: Tensor, teacher_head: Tensor, said: Tensor, alpha: float
    ) -> Tensor:
        of_states, of_head = torch.empty_like(states), torch.zeros_like(head) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), dtype=torch.float64, device=states.device)
        count = max(1, _LOGITS // len(head))
        for start in range(0, len(states), count):
            part = slice(start, start + count)
            learned = functional.linear(states[part], head).log_softmax(-1)
            target = functional.linear(wanted[part], teacher_head).log_softmax(-1)
            tokens = said[part, None]
            total -= (1 - alpha) * learned.gather(1, tokens).sum()
            goal = target.exp()
            total += alpha * torch.dot(goal.flatten(), target.sub_(learned).flatten())
            # The gradient of both for the logits: what is said minus what should be.
            goal.mul_(alpha).scatter_add_(1, tokens, torch.full_like(tokens, 1 - alpha, dtype=goal.dtype))
            apart = learned.exp_().sub_(goal).div_(len(states))
            torch.mm(apart, head, out=of_states[part])
            if of_head is not None:
                of_head.addmm_(apart.T, states[part])
        ctx.save_for_backward(of_states, of_head)
        return (total / len(states)).to(states.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        of_states, of_head = ctx.saved_tensors
        return of_states * gradient, None if of_head is None else of_head * gradient, None, None, None, None
