"""How fast a model trains, before anything is spent on training it."""

from __future__ import annotations

import copy
import time

import torch
from torch import nn

from tasks.torch_models.fit_layout import channels_last
from tasks.torch_models.fit_rows import Rows, call_model
from tasks.torch_models.fit_threads import worthwhile_threads

_STEPS = 3
"""Timed steps, after an untimed one; the fastest counts, for nothing makes a step faster than it is."""


def row_seconds(model: nn.Module, rows: Rows, *, batch_size: int) -> float:
    """Seconds per row of a training step with the workload's loss, augmentation included; the model stays as it is.

    Args:
        model: on the device of the rows.
    """
    count = min(batch_size, rows.count)
    index = torch.arange(count)
    trial = copy.deepcopy(model)
    sample = rows(torch.arange(min(2, rows.count)), None).inputs
    taken = []
    with worthwhile_threads(model, sample, batch_size), channels_last(trial, sample):
        trial.train()
        for number in range(1 + _STEPS):
            began = time.perf_counter()
            batch = rows(index, torch.Generator().manual_seed(number))
            trial.zero_grad(set_to_none=True)
            loss = rows.workload.loss(trial(**batch.inputs), batch.targets)
            torch.autograd.backward(loss)
            loss.item()  # waits for an accelerator
            taken.append(time.perf_counter() - began)
    return min(taken[1:]) / count


def answer_seconds(model: nn.Module, rows: Rows, *, batch_size: int = 64) -> float:
    """Seconds per row of answering, as a teacher is asked; arguments as :func:`row_seconds`."""
    batch = rows(torch.arange(min(batch_size, rows.count)), None)
    taken = []
    with worthwhile_threads(model, batch.inputs, batch_size), channels_last(model, batch.inputs), torch.no_grad():
        for _ in range(1 + _STEPS):
            began = time.perf_counter()
            float(call_model(model.eval(), batch.inputs).flatten()[0])  # waits for an accelerator
            taken.append(time.perf_counter() - began)
    return min(taken[1:]) / len(batch.index)
