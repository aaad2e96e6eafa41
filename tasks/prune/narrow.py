"""Prune, measure BatchNorm again, fine-tune; as often as there are steps.

Each step's fine-tuning is a training of its own with the whole course of the learning rate: the rate is rewound to its
peak and the weights are not (Renda et al. 2020, "Comparing rewinding and fine-tuning", arXiv:2003.02389).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from tasks.prune.channel_cut import ChannelCutter, Cut
from tasks.torch_models.fit import fit
from tasks.torch_models.fit_checkpoint import Checkpoints
from tasks.torch_models.fit_rows import Rows, evaluate, torch_device
from tasks.torch_models.fit_state import History
from tasks.torch_models.objective import Objective
from tasks.torch_models.pruning_plan import Plan
from tasks.torch_models.torch_cost import TorchCost, torch_cost
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData

_TRACED_ROWS = 2


@dataclass(frozen=True)
class Narrowed:
    """What pruning came to; the model itself was changed in place.

    ``layers``: channels before and after by layer. ``validation``: the metric of the ``parent``, of the ``pruned``
    model before its last fine-tuning, and of the ``tuned`` one. ``untraced``: layers the graph did not reach;
    ``left_alone``: those whose width cannot change, and why.
    """

    plan: Plan
    before: TorchCost
    after: TorchCost
    layers: dict[str, tuple[int, int]]
    untraced: tuple[str, ...]
    left_alone: dict[str, str]
    batchnorm_layers: int
    validation: dict[str, float]
    history: History


def narrow(
    model: nn.Module,
    data: TrainingData,
    cut: Cut,
    training: Training,
    *,
    objective: Objective,
    seed: int,
    device: str,
    checkpoints: Callable[[int], Checkpoints | None],
    parent_metric: float | None = None,
    progress: Callable[[float, str], None],
) -> Narrowed:
    """Prune and fine-tune the model in place; it ends on the device, in eval mode.

    Args:
        data: what it is ranked, fine-tuned and judged by.
        cut: what goes, in how many steps.
        training: how it is fine-tuned; its epochs are shared by the steps, at least one each; 0 epochs: not at all.
        objective: what fine-tuning minimises.
        checkpoints: of the fine-tuning of each step.
        parent_metric: the model's metric on validation where it is known; None: the model is asked.
        progress: called with a fraction of the whole and a line of text.

    Raises:
        PruningRefused: see :class:`tasks.torch_models.channel_pruner.ChannelPruner`.
        TrainingDiverged: the loss became NaN or infinite.
    """
    where = torch_device(device)
    model.to(where)
    rows = Rows(data.workload, data.train, where)
    sample = rows(torch.arange(_TRACED_ROWS), None).inputs
    score = partial(evaluate, model, workload=data.workload, columns=data.validation, device=device)
    judged = training.epochs > 0  # an untrained structure is only costed: its answers say nothing
    metric = {"parent": score()[1] if parent_metric is None else parent_metric} if judged else {}
    before, history = torch_cost(model, sample), History()
    cutter = ChannelCutter(model, sample, rows, cut, batch_size=training.batch_size, seed=seed)
    widths = cutter.pruner.widths()
    for step in range(cut.steps):
        done = step / cut.steps
        progress(done, f"step {step + 1}/{cut.steps}: removing channels")
        cutter.step(step)
        if not judged:
            continue
        metric["pruned"] = metric["tuned"] = score()[1]

        def tell(fraction: float, text: str, done: float = done) -> None:
            progress(done + fraction / cut.steps, text)

        fitted = fit(
            model,
            data,
            replace(training, epochs=_share(training.epochs, cut.steps, step)),
            objective=objective,
            seed=seed + step,
            device=device,
            checkpoints=checkpoints(step),
            progress=tell,
        )
        metric["tuned"] = fitted.val_metric
        first = len(history)
        history += [{**row, "epoch": first + int(row["epoch"]), "step": step + 1} for row in fitted.history]
    return Narrowed(
        plan=cutter.pruner.plan,
        before=before,
        after=torch_cost(model, sample),
        layers={name: (width, cutter.pruner.widths()[name]) for name, width in widths.items()},
        untraced=cutter.pruner.untraced,
        left_alone=dict(cutter.pruner.left_alone),
        batchnorm_layers=cutter.batchnorm_layers,
        validation=metric,
        history=history,
    )


def _share(epochs: int, steps: int, step: int) -> int:
    """Epochs of one step: an even share of all, and at least one."""
    return max(1, (step + 1) * epochs // steps - step * epochs // steps)
