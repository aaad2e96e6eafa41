"""The rehearse stage in its process."""

from __future__ import annotations

import time

import torch
from torch import nn

from tasks.running.child import Child, Result
from tasks.running.errors import WorkloadError
from tasks.running.splits import SPLITS, read_split
from tasks.torch_models.fit_rows import Rows, call_model
from tasks.torch_models.model_structure import ModelStructure
from tasks.torch_models.torch_variant import build, save, tensor_specs
from tasks.workloads.task_check import settle_task, targets_of
from tasks.workloads.workload import is_trained, load_workload

_NOISE = 0.02
_TIMED = 64
"""Rows of the batch that is timed."""


def main(child: Child) -> Result:
    """Ask an untrained teacher about two rows, compare its answers with all targets, and publish it."""
    scale = child.spec["scale"]
    workload = load_workload(child.job.workload, child.data.known)
    if is_trained(workload):
        raise WorkloadError(
            f"the model of {workload.ref.path} is trained already, and training it again would only spoil it: write "
            "`teacher: {}` into the spec, in place of `train`"
        )
    validation = read_split(child.store, child.data, "validation")
    model = build(workload, "teacher", scale, seed=child.job.seed)
    _, outputs = tensor_specs(model.eval(), workload=workload, sample=validation)

    targets = {name: targets_of(workload, read_split(child.store, child.data, name)) for name in SPLITS}
    task = settle_task(workload, outputs[0].shape, targets)

    _stir(model, child.job.seed)
    variant = save(
        child.store,
        model,
        workload=workload,
        structure=ModelStructure(role="teacher", scale=scale),
        sample=validation,
        name="untrained",
        stage="rehearse",
    )
    seconds = _row_seconds(model, Rows(workload, validation, torch.device("cpu")))
    return Result(variants=(variant,), values={"task": task.as_json(), "row_seconds": seconds})


def _row_seconds(model: nn.Module, rows: Rows) -> float:
    """What an answer takes, by row."""
    batch = rows(rows.lengths.usual(rows.count, min(_TIMED, rows.count)), None, cut=True)
    with torch.no_grad():
        call_model(model, batch.inputs)
        began = time.perf_counter()
        call_model(model, batch.inputs)
    return (time.perf_counter() - began) / len(batch.targets)


def _stir(model: nn.Module, seed: int) -> None:
    """Layers that begin with zeros answer nothing, of which quantization and pruning can be tried on nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and not parameter.any():
                parameter.copy_(_NOISE * torch.randn(parameter.shape, generator=generator))
