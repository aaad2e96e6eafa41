"""Rows of a split as the model's raw inputs."""

from __future__ import annotations

import torch

from tasks.evidence.arrays import Array
from tasks.running.errors import WorkloadError
from tasks.running.splits import TARGET, Columns
from tasks.workloads.workload import Workload

MEASURED = ("calibration", "validation", "test")
"""Splits that variants are calibrated and measured on."""


def raw_arrays(workload: Workload, columns: Columns) -> dict[str, Array]:
    """All rows as the model's raw inputs by name, and their targets."""
    with torch.no_grad():
        inputs, targets = workload.batch({name: torch.from_numpy(values) for name, values in columns.items()})
    if TARGET in inputs:
        raise WorkloadError(
            f"{workload.ref.path}.batch() names an input {TARGET!r}; that name is the target's: rename it"
        )
    return {name: tensor.detach().cpu().numpy() for name, tensor in inputs.items()} | {TARGET: targets.cpu().numpy()}
