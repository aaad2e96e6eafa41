"""Hints: the student's hidden features follow the teacher's, through projectors that are trained along.

Romero et al. 2015, "FitNets: hints for thin deep nets" (arXiv:1412.6550), section 2.2, as one more term of the loss
instead of a stage before, and over as many layers as wanted. Or its attention does: how alike positions are has the
same shape however wide the layers are, and needs no projector (Wang et al. 2021, "MiniLMv2", arXiv:2012.15828, section
3.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.distill.hint_kind import HintKind
from tasks.running.errors import SpecError
from tasks.torch_models.fit_rows import call_model
from tasks.torch_models.objective import Objective, TrainingBatch

_MOST_HEADS = 12
_NOWHERE = -1e9
"""Score of a position that only fills the row up."""
Filling = Mapping[str, tuple[int, float]]
Pairs = Sequence[tuple[str, str]]
"""Module names: of the teacher, of the student."""


class Hinted(nn.Module):
    """The base objective plus ``weight`` times the mean of the hint losses of all pairs.

    Its parameters are the projectors', which attention has none of. ``base`` must ask the teacher live: the features
    are those of its forward pass.
    """

    def __init__(
        self,
        base: Objective,
        pairs: Pairs,
        *,
        teacher: Taps,
        student: Taps,
        projectors: nn.ModuleList,
        weight: float,
        compare: Callable[[Tensor, Tensor, TrainingBatch], Tensor],
    ) -> None:
        super().__init__()
        self.base, self.pairs, self.weight, self.compare = base, tuple(pairs), weight, compare
        self.teacher, self.student = teacher, student
        self.projectors = projectors

    def forward(self, outputs: Tensor, batch: TrainingBatch) -> Tensor:
        soft = self.base(outputs, batch)
        losses = [
            self.compare(projector(self.student[ours].float()), self.teacher[theirs].float(), batch)
            for (theirs, ours), projector in zip(self.pairs, self.projectors, strict=True)
        ]
        return soft + self.weight * torch.stack(losses).mean()


@contextmanager
def hinted(
    base: Objective,
    *,
    teacher: nn.Module,
    student: nn.Module,
    pairs: Pairs,
    weight: float,
    inputs: dict[str, Tensor],
    seed: int,
    of: HintKind = "features",
    filling: Filling | None = None,
) -> Iterator[Hinted]:
    """The objective with hints, while the features of both models are watched.

    Args:
        base: asks ``teacher`` for its answers to each batch.
        pairs: which module of the student follows which of the teacher.
        weight: of the hints; each lies between 0 (same direction) and 4 (opposite), of attention from 0 on, in nats.
        inputs: preprocessed rows for one forward pass of each model, which shows how wide the features are.
        seed: of the projectors' initial weights.
        filling: by input, the dimension of the positions and what fills rows up; attention is compared without that.

    Raises:
        SpecError: a model has no module of that name, it did not run, or its output is no tensor [N, ...].
    """
    as_is = of == "attention"
    theirs = Taps(teacher, tuple(name for name, _ in pairs), "teacher", as_is=as_is)
    ours = Taps(student, tuple(name for _, name in pairs), "student", as_is=as_is)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for model in (teacher, student):
                call_model(model.eval(), inputs)
            torch.manual_seed(seed)
            projectors = nn.ModuleList(
                nn.Linear(ours[s].shape[-1], theirs[t].shape[-1]) if of == "features" else nn.Identity()
                for t, s in pairs
            )

        def compare(student: Tensor, teacher: Tensor, batch: TrainingBatch) -> Tensor:
            if of == "features":
                return hint_loss(student, teacher)
            return relation_loss(student, teacher, _seen(batch.inputs, filling or {}, teacher.shape[1]))

        yield Hinted(base, pairs, teacher=theirs, student=ours, projectors=projectors, weight=weight, compare=compare)
    finally:
        theirs.close()
        ours.close()


class Taps:
    """The outputs of some modules in the model's last forward pass, by name, as [N, positions..., channels].

    Args:
        as_is: they are that already.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...], role: str, *, as_is: bool = False) -> None:
        modules = {name: module for name, module in model.named_modules() if name}
        unknown = sorted(set(names) - modules.keys())
        if unknown:
            raise SpecError(
                f"distill.hints.layers names {', '.join(map(repr, unknown))}, which the {role} "
                f"{type(model).__name__} does not have; it has {', '.join(modules)}"
            )
        self.role = role
        self._last = as_is or features_last(model)
        self._seen: dict[str, Any] = {}
        self._hooks = [modules[name].register_forward_hook(partial(self._keep, name)) for name in dict.fromkeys(names)]

    def _keep(self, name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        self._seen[name] = output

    def __getitem__(self, name: str) -> Tensor:
        output = self._seen.get(name)
        if not isinstance(output, Tensor) or output.ndim < 2:
            what = f"answers {type(output).__name__}" if name in self._seen else "did not run in the forward pass"
            raise SpecError(
                f"distill.hints.layers names {name!r}, but that module of the {self.role} {what}; hints need modules "
                "that answer one tensor [N, ...]"
            )
        return output if output.ndim == 2 or (output.ndim == 3 and self._last) else output.movedim(1, -1)

    def close(self) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()
        self._seen.clear()


def features_last(model: nn.Module) -> bool:
    """Whether features [N, a, b] are positions by channels, as in a transformer, or channels by positions."""
    return not any(isinstance(module, nn.Conv1d) for module in model.modules())


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of features [N, positions..., channels] whose rows are scaled to length 1, averaged over rows.

    Where the number of positions differs, the larger is averaged down. 0 for the same direction, 2 for a right angle.
    """
    if student.ndim != teacher.ndim:
        raise SpecError(
            f"distill.hints.layers pairs features of the student with {student.ndim - 2} spatial dimensions and of the "
            f"teacher with {teacher.ndim - 2}; pair convolutions with convolutions, dense layers with dense layers"
        )
    for dim in range(1, student.ndim - 1):
        size = min(student.shape[dim], teacher.shape[dim])
        student, teacher = _pooled(student, dim, size), _pooled(teacher, dim, size)
    ours, theirs = (functional.normalize(features.flatten(1), dim=1) for features in (student, teacher))
    return (ours - theirs).square().sum(dim=1).mean()


def relation_loss(student: Tensor, teacher: Tensor, seen: Tensor | None = None) -> Tensor:
    """Divergence, in nats, of how alike the positions of a row are: ``KL(teacher || student)`` of the softmax of scaled
    products, averaged over rows, heads and positions.

    Args:
        student, teacher: queries, keys or values [N, length, channels]; cut into as many heads for both, at most 12.
        seen: bool [N, length], the positions that are more than filling, which count alone; None: all.

    Raises:
        SpecError: they are no rows of positions, or not of as many.
    """
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[:2] != teacher.shape[:2]:
        raise SpecError(
            f"distill.hints of attention compares outputs of shapes {list(teacher.shape)} and {list(student.shape)}; "
            "both must be [rows, positions, channels], with as many positions"
        )
    shared = math.gcd(student.shape[2], teacher.shape[2])
    heads = max(number for number in range(1, _MOST_HEADS + 1) if shared % number == 0)
    ours, theirs = (_relations(value, heads, seen) for value in (student, teacher))
    divergence = functional.kl_div(ours, theirs, log_target=True, reduction="none").sum(dim=-1).mean(dim=1)
    if seen is None:
        return divergence.mean()
    return (divergence * seen).sum() / seen.sum().clamp(min=1)


def _seen(inputs: Mapping[str, Tensor], filling: Filling, positions: int) -> Tensor | None:
    """Bool [N, positions]: more than filling; None where no input has as many positions that could be filled up."""
    for name, (dim, value) in filling.items():
        content = inputs[name].movedim(dim, 1).flatten(2) if inputs[name].ndim > 2 else inputs[name].unsqueeze(2)
        if content.shape[1] == positions:
            return content.ne(value).any(dim=2)
    return None


def _relations(value: Tensor, heads: int, seen: Tensor | None) -> Tensor:
    """Logarithms [N, heads, length, length] of how alike each position is to each that is seen."""
    split = value.unflatten(2, (heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
    scores = split @ split.transpose(2, 3) / math.sqrt(split.shape[3])
    if seen is not None:
        scores = scores.masked_fill(~seen[:, None, None, :], _NOWHERE)
    return functional.log_softmax(scores, dim=-1)


def _pooled(features: Tensor, dim: int, size: int) -> Tensor:
    """Adaptive average pooling of one dimension, as a product: torch's own has no deterministic gradient on CUDA."""
    positions = features.shape[dim]
    if positions == size:
        return features
    weights = functional.adaptive_avg_pool1d(torch.eye(positions, device=features.device), size)
    return (features.movedim(dim, -1) @ weights).movedim(-1, dim)
