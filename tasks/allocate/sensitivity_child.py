"""The sensitivity stage in its process."""

from __future__ import annotations

from tasks.allocate.sensitivity_trials import Trials, find_sensitivity
from tasks.running.child import Child, Result
from tasks.running.splits import read_split
from tasks.torch_models.torch_variant import load
from tasks.workloads.offered_scales import offered_scales
from tasks.workloads.workload import load_workload


def main(child: Child) -> Result:
    """Read the parent's structure and measure the damage of narrowing each of its groups, on calibration rows."""
    workload = load_workload(child.job.workload)
    columns = read_split(child.store, child.data, "calibration")
    model = load(child.store, child.inputs["parent"], workload=workload)

    found = find_sensitivity(
        model,
        workload,
        columns,
        Trials.of(child.spec, workload.prune_hints()),
        classification=child.data.task == "classification",
        seed=child.job.seed,
        device=child.job.device,
        progress=child.progress,
    )

    structure = found.structure.model_dump(mode="json")
    values = {
        "structure": structure,
        "damages": found.damages,
        "rows": found.rows,
        "answer_seconds": found.answer_seconds,
        "augments": workload.augments,
        "offers": offered_scales(workload),
    }
    return Result(values=values)
