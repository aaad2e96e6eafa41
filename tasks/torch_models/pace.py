"""How fast a model trains, before anything is spent on training it."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import nn

from tasks.torch_models.fit_layout import channels_last
from tasks.torch_models.fit_rows import Rows, call_model
from tasks.torch_models.fit_threads import worthwhile_threads
from tasks.torch_models.objective import Hard, Objective, called_in_training

_STEPS = 3
"""Timed steps, after an untimed one; the fastest counts, for nothing makes a step faster than it is."""


_LARGER = (2, 4)
"""Times the batch size that are tried."""
_HARDLY_LONGER = 1.5
"""Times as long as a step with the batch size may one with a larger batch take."""
_FEWEST_STEPS = 20
"""Of an epoch, with any batch."""


def training_pace(
    model: nn.Module, rows: Rows, *, batch_size: int, objective: Objective | None = None
) -> dict[str, Any]:
    """How fast the model trains, and with which batch it would see more rows in hardly more time.

    What a step costs besides its arithmetic is the same for every batch. Where that is most of it, as in small dense
    networks, four times the rows come almost for free.

    Args:
        objective: what is learned; None: the workload's loss.

    Returns:
        ``row_seconds`` with ``batch_size`` rows a step, and ``larger`` (``batch_size``, ``row_seconds``), the same
        where no larger batch pays.
    """
    sizes = [batch_size, *(batch_size * n for n in _LARGER if rows.count // (batch_size * n) >= _FEWEST_STEPS)]
    found = dict[int, float]()
    for size in sizes:
        found[size] = row_seconds(model, rows, batch_size=size, objective=objective)
        if not _pays(found, batch_size, size):
            break
    best = max(size for size in found if size == batch_size or _pays(found, batch_size, size))
    larger = {"batch_size": best, "row_seconds": found[best]}
    return {"row_seconds": found[batch_size], "larger": larger}


def _pays(seconds: dict[int, float], batch_size: int, size: int) -> bool:
    return seconds[size] * size <= _HARDLY_LONGER * seconds[batch_size] * batch_size


def row_seconds(model: nn.Module, rows: Rows, *, batch_size: int, objective: Objective | None = None) -> float:
    """Seconds per row of a training step, augmentation included; the model stays as it is.

    Args:
        model: on the device of the rows.
        objective: what is learned; None: the workload's loss.
    """
    count = min(batch_size, rows.count)
    index = rows.lengths.usual(rows.count, count)
    goal = objective or Hard(rows.workload.loss)
    trial = called_in_training(copy.deepcopy(model), goal)
    sample = rows(torch.arange(min(2, rows.count)), None).inputs
    taken = []
    with worthwhile_threads(model, sample, batch_size), channels_last(trial, sample):
        trial.train()
        for number in range(1 + _STEPS):
            began = time.perf_counter()
            batch = rows(index, torch.Generator().manual_seed(number), cut=True)
            trial.zero_grad(set_to_none=True)
            loss = goal(trial(**batch.inputs), batch)
            torch.autograd.backward(loss)
            loss.item()  # waits for an accelerator
            taken.append(time.perf_counter() - began)
    return min(taken[1:]) / count


def answer_seconds(model: nn.Module, rows: Rows, *, batch_size: int = 64) -> float:
    """Seconds per row of answering, as a teacher is asked; arguments as :func:`row_seconds`."""
    batch = rows(rows.lengths.usual(rows.count, min(batch_size, rows.count)), None, cut=True)
    taken = []
    with worthwhile_threads(model, batch.inputs, batch_size), channels_last(model, batch.inputs), torch.no_grad():
        for _ in range(1 + _STEPS):
            began = time.perf_counter()
            float(call_model(model.eval(), batch.inputs).flatten()[0])  # waits for an accelerator
            taken.append(time.perf_counter() - began)
    return min(taken[1:]) / len(batch.index)
