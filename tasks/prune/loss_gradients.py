"""Gradients by which channels are ranked: of the workload's loss, in evaluation mode, before anything is removed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tasks.torch_models.objective import TrainingBatch
from tasks.workloads.workload import Workload

_HESSIAN_ROWS = 512
"""Most rows used for ``hessian``: each has a backward pass of its own."""


def add_gradients(model: nn.Module, batches: Iterable[TrainingBatch], workload: Workload) -> None:
    """Leave the gradients of the loss, summed over the batches, in the parameters: what ``taylor`` multiplies."""
    model.eval()
    model.zero_grad(set_to_none=True)
    for batch in batches:
        torch.autograd.backward(workload.loss(model(**batch.inputs), batch.targets))


def mean_squared_gradients(model: nn.Module, batches: Iterable[TrainingBatch], workload: Workload) -> None:
    """Leave means of squared gradients of single rows in the parameters: the Fisher diagonal that ``hessian`` takes."""
    model.eval()
    squares: dict[nn.Parameter, Tensor] = {}
    rows = 0
    for batch in batches:
        for row in range(min(len(batch.index), _HESSIAN_ROWS - rows)):
            model.zero_grad(set_to_none=True)
            answer = model(**{name: value[row : row + 1] for name, value in batch.inputs.items()})
            torch.autograd.backward(workload.loss(answer, batch.targets[row : row + 1]))
            for parameter in model.parameters():
                if parameter.grad is not None:
                    square = parameter.grad.square()
                    squares[parameter] = squares[parameter] + square if parameter in squares else square
            rows += 1
    for parameter, total in squares.items():
        parameter.grad = total / rows
