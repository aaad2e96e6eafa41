"""Apply the workload's ``batch`` to the splits that variants are measured on."""

from __future__ import annotations

import torch

from tasks.evidence.arrays import publish_arrays
from tasks.running.child import Child, Result
from tasks.running.errors import WorkloadError
from tasks.running.splits import TARGET, read_split
from tasks.workloads.workload import load_workload

MEASURED = ("calibration", "validation", "test")


def main(child: Child) -> Result:
    """Publish ``calibration.npz``, ``validation.npz`` and ``test.npz``."""
    workload = load_workload(child.job.workload)
    files = []
    for name in MEASURED:
        columns = {key: torch.from_numpy(array) for key, array in read_split(child.store, child.data, name).items()}
        with torch.no_grad():
            inputs, targets = workload.batch(columns)
        if TARGET in inputs:
            raise WorkloadError(
                f"{child.job.workload.path}.batch() names an input {TARGET!r}; that name is the target's: rename it"
            )
        arrays = {key: tensor.detach().cpu().numpy() for key, tensor in inputs.items()}
        files.append(publish_arrays(child.store, f"{name}.npz", **arrays, **{TARGET: targets.cpu().numpy()}))
    return Result(files=tuple(files))
