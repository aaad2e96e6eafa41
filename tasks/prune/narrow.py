"""Prune, measure BatchNorm again, fine-tune; as often as there are steps.

Each step's fine-tuning is a training of its own with the whole course of the learning rate: the rate is rewound to its
peak and the weights are not (Renda et al. 2020, "Comparing rewinding and fine-tuning", arXiv:2003.02389).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tasks.prune.batchnorm import reestimate_batchnorm
from tasks.prune.torch_cost import TorchCost, torch_cost
from tasks.running.splits import Columns
from tasks.torch_models.channel_pruner import ChannelPruner, Importance, Scope
from tasks.torch_models.fit import History, fit
from tasks.torch_models.fit_checkpoint import Checkpoints
from tasks.torch_models.fit_rows import Rows, evaluate, torch_device
from tasks.torch_models.fit_seeding import derive, reproducible
from tasks.torch_models.objective import Objective, TrainingBatch
from tasks.torch_models.pruning_plan import Plan
from tasks.workloads.workload import Workload

_TRACED_ROWS = 2
_HESSIAN_ROWS = 512
"""At most so many rows for ``hessian``: each has a backward pass of its own."""


@dataclass(frozen=True)
class Narrowed:
    """What pruning came to; the model itself was changed in place.

    ``layers``: channels before and after by layer. ``validation``: the metric of the ``parent``, of the ``pruned``
    model before its last fine-tuning, and of the ``tuned`` one. ``untraced``: layers the graph did not reach.
    """

    plan: Plan
    before: TorchCost
    after: TorchCost
    layers: dict[str, tuple[int, int]]
    untraced: tuple[str, ...]
    batchnorm_layers: int
    validation: dict[str, float]
    history: History


def narrow(
    model: nn.Module,
    *,
    workload: Workload,
    train: Columns,
    validation: Columns,
    objective: Objective,
    ratio: float,
    ratios: dict[str, float] | None,
    importance: Importance,
    scope: Scope,
    steps: int,
    round_to: int,
    ignore: tuple[str, ...],
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    patience: int | None,
    batchnorm_batches: int,
    gradient_batches: int,
    seed: int,
    device: str,
    checkpoints: Callable[[int], Checkpoints | None],
    parent_metric: float | None = None,
    progress: Callable[[float, str], None],
) -> Narrowed:
    """Prune and fine-tune the model in place; it ends on the device, in eval mode.

    Args:
        objective: what fine-tuning minimises.
        ratio, ratios: share to remove, and of each layer named.
        steps: the ratio is reached in so many equal steps, each followed by its share of the ``epochs``; 0 epochs: by
            none.
        batchnorm_batches: training batches over which BatchNorm's statistics are measured again before fine-tuning.
        gradient_batches: training batches whose gradients ``taylor`` adds up, or ``hessian`` squares row by row.
        checkpoints: of the fine-tuning of each step.
        parent_metric: the model's metric on validation where it is known; None: the model is asked.
        progress: told a fraction of the whole and a line of text.

    Raises:
        PruningRefused: see :class:`tasks.torch_models.channel_pruner.ChannelPruner`.
        TrainingDiverged: the loss became NaN or infinite.
    """
    where = torch_device(device)
    model.to(where)
    rows = Rows(workload, train, where)
    sample = rows(torch.arange(_TRACED_ROWS), None).inputs
    score = partial(evaluate, model, workload=workload, columns=validation, device=device)
    metric = {"parent": score()[1] if parent_metric is None else parent_metric}
    before, layers, history = torch_cost(model, sample), 0, History()
    pruner = ChannelPruner(
        model,
        sample,
        ratio=ratio,
        ratios=ratios,
        steps=steps,
        importance=importance,
        scope=scope,
        round_to=round_to,
        ignore=ignore,
    )
    widths = pruner.widths()
    for step in range(steps):
        done = step / steps
        progress(done, f"step {step + 1}/{steps}: removing channels")
        with reproducible(where, True):
            if importance in ("taylor", "hessian"):
                add = _add_gradients if importance == "taylor" else _mean_squared_gradients
                add(model, _batches(rows, batch_size, gradient_batches, derive(seed, step)), workload)
            pruner.step()
            model.zero_grad(set_to_none=True)
            batches = _batches(rows, batch_size, batchnorm_batches, derive(seed, step))
            layers = reestimate_batchnorm(model, (batch.inputs for batch in batches))
        metric["pruned"] = metric["tuned"] = score()[1]
        if epochs == 0:
            continue

        def tell(fraction: float, text: str, done: float = done) -> None:
            progress(done + fraction / steps, text)

        fitted = fit(
            model,
            workload=workload,
            train=train,
            validation=validation,
            objective=objective,
            epochs=_share(epochs, steps, step),
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            patience=patience,
            seed=seed + step,
            device=device,
            checkpoints=checkpoints(step),
            progress=tell,
        )
        metric["tuned"] = fitted.val_metric
        first = len(history)
        history += [{**row, "epoch": first + int(row["epoch"]), "step": step + 1} for row in fitted.history]
    return Narrowed(
        plan=pruner.plan,
        before=before,
        after=torch_cost(model, sample),
        layers={name: (width, pruner.widths()[name]) for name, width in widths.items()},
        untraced=pruner.untraced,
        batchnorm_layers=layers,
        validation=metric,
        history=history,
    )


def _add_gradients(model: nn.Module, batches: Iterable[TrainingBatch], workload: Workload) -> None:
    """Gradients of the workload's loss, summed over the batches, in evaluation mode: what ``taylor`` multiplies."""
    model.eval()
    model.zero_grad(set_to_none=True)
    for batch in batches:
        torch.autograd.backward(workload.loss(model(**batch.inputs), batch.targets))


def _mean_squared_gradients(model: nn.Module, batches: Iterable[TrainingBatch], workload: Workload) -> None:
    """Means of the squared gradients of single rows, in evaluation mode: the Fisher diagonal that ``hessian`` takes."""
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


def _batches(rows: Rows, size: int, count: int, seed: int) -> Iterator[TrainingBatch]:
    """At most ``count`` batches of random training rows, no row twice."""
    order = torch.randperm(rows.count, generator=torch.Generator().manual_seed(seed))
    parts: tuple[Tensor, ...] = torch.split(order, size)
    return (rows(part, None) for part in parts[:count] if len(part) > 1)


def _share(epochs: int, steps: int, step: int) -> int:
    """Epochs of one step: an even share of all, and at least one."""
    return max(1, (step + 1) * epochs // steps - step * epochs // steps)
