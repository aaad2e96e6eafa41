"""The sensitivity stage in its process."""

from __future__ import annotations

from typing import Any

from torch import nn

from tasks.allocate.sensitivity_trials import Trials, find_sensitivity
from tasks.running.child import Child, Result
from tasks.running.errors import PruningRefused
from tasks.running.splits import Columns, read_split
from tasks.torch_models.fit_rows import Rows, torch_device
from tasks.torch_models.pace import answer_seconds, row_seconds
from tasks.torch_models.torch_variant import load
from tasks.workloads.offered_scales import offered_scales
from tasks.workloads.workload import Workload, load_workload


def main(child: Child) -> Result:
    """Read the parent's structure and measure the damage of narrowing each of its groups, on calibration rows."""
    workload = load_workload(child.job.workload, child.data.known)
    columns = read_split(child.store, child.data, "calibration")
    model = load(child.store, child.inputs["parent"], workload=workload)
    values = _facts(child, workload, columns, model)
    try:
        found = find_sensitivity(
            model,
            workload,
            columns,
            Trials.of(child.spec, workload.prune_hints()),
            task=child.data.task,
            seed=child.job.seed,
            device=child.job.device,
            progress=child.progress,
        )
    except PruningRefused as refusal:  # an answer, too: the rest of what is known holds
        return Result(values={**values, "refused": refusal.message})
    structure = found.structure.model_dump(mode="json")
    values |= {"structure": structure, "damages": found.damages, "rows": found.rows, "left_alone": found.left_alone}
    return Result(values=values)


def _facts(child: Child, workload: Workload, columns: Columns, model: nn.Module) -> dict[str, Any]:
    """What whoever looks for smaller ones wants to know, whether the model can be narrowed or not."""
    where = torch_device(child.job.device)
    rows = Rows(workload, columns, where)
    model.to(where)
    return {
        "answer_seconds": answer_seconds(model, rows),
        "row_seconds": row_seconds(model, rows, batch_size=64),
        "augments": workload.augments,
        "offers": offered_scales(workload),
    }
