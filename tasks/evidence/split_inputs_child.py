"""Apply the workload's ``batch`` to the splits that variants are measured on."""

from __future__ import annotations

from tasks.evidence.arrays import publish_arrays
from tasks.evidence.raw_arrays import MEASURED, raw_arrays
from tasks.running.child import Child, Result
from tasks.running.splits import read_split
from tasks.workloads.workload import load_workload


def main(child: Child) -> Result:
    """Publish ``calibration.npz``, ``validation.npz`` and ``test.npz``."""
    workload = load_workload(child.job.workload, child.data.known)
    files = []
    for name in MEASURED:
        arrays = raw_arrays(workload, read_split(child.store, child.data, name))
        files.append(publish_arrays(child.store, f"{name}.npz", **arrays))
    return Result(files=tuple(files))
