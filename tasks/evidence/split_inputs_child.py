"""Apply the workload's ``batch`` to the splits that variants are measured on."""

from __future__ import annotations

import torch

from tasks.evidence.arrays import Array, publish_arrays
from tasks.running.child import Child, Result
from tasks.running.errors import WorkloadError
from tasks.running.splits import TARGET, Columns, read_split
from tasks.workloads.workload import Workload, load_workload

MEASURED = ("calibration", "validation", "test")


def main(child: Child) -> Result:
    """Publish ``calibration.npz``, ``validation.npz`` and ``test.npz``."""
    workload = load_workload(child.job.workload, child.data.known)
    files = []
    for name in MEASURED:
        arrays = _raw(workload, read_split(child.store, child.data, name))
        files.append(publish_arrays(child.store, f"{name}.npz", **arrays))
    return Result(files=tuple(files))


def _raw(workload: Workload, columns: Columns) -> dict[str, Array]:
    """All rows as the model's raw inputs by name, and their targets."""
    with torch.no_grad():
        inputs, targets = workload.batch({name: torch.from_numpy(values) for name, values in columns.items()})
    if TARGET in inputs:
        raise WorkloadError(
            f"{workload.ref.path}.batch() names an input {TARGET!r}; that name is the target's: rename it"
        )
    return {name: tensor.detach().cpu().numpy() for name, tensor in inputs.items()} | {TARGET: targets.cpu().numpy()}
