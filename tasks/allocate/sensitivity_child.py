"""The sensitivity stage in its process."""

from __future__ import annotations

import torch

from tasks.allocate.layer_shapes import read_structure
from tasks.allocate.sensitivity import measure_damage
from tasks.running.child import Child, Result
from tasks.running.splits import read_split
from tasks.torch_models.channel_pruner import ChannelPruner
from tasks.torch_models.fit_rows import Rows, torch_device
from tasks.torch_models.fit_seeding import reproducible
from tasks.torch_models.fit_threads import row_macs, worthwhile_threads
from tasks.torch_models.torch_variant import load
from tasks.workloads.workload import load_workload

_MOST_MACS = 2e12
"""Multiply-accumulates in all: about a minute of one core. Larger models are asked fewer rows."""
_FEWEST_ROWS = 64


def main(child: Child) -> Result:
    """Read the parent's structure and measure the damage of narrowing each of its groups, on calibration rows."""
    spec = child.spec
    workload = load_workload(child.job.workload)
    model = load(child.store, child.inputs["parent"], workload=workload)
    where = torch_device(child.job.device)
    model.to(where)
    hints = workload.prune_hints()
    columns = read_split(child.store, child.data, "calibration")
    rows = Rows(workload, columns, where)
    sample = rows(torch.arange(2), None).inputs
    ignore = (*hints.get("ignore", ()), *spec["ignore"])
    pruner = ChannelPruner(model, sample, ratio=0.5, ignore=ignore)
    groups = pruner.groups()
    structure = read_structure(
        model,
        sample,
        groups,
        pruner.outputs,
        min_keep=spec["min_keep"],
        round_to=spec["round_to"] or hints.get("round_to", 1),
    )
    keeps = {
        group.name: sorted({group.lowest, *(group.nearest(1 - r) for r in spec["removals"])} - {group.width})
        for group in structure.groups
    }
    asked = sum(map(len, keeps.values())) + 1
    affordable = max(_FEWEST_ROWS, int(_MOST_MACS / (row_macs(model, sample) * asked)))
    count = min(rows.count, spec["rows"], affordable)
    order = torch.randperm(rows.count, generator=torch.Generator().manual_seed(child.job.seed))[:count]
    chosen = Rows(workload, {name: values[order.numpy()] for name, values in columns.items()}, where)
    with reproducible(where, True), worthwhile_threads(model, sample, count):
        damages = measure_damage(
            model,
            chosen,
            groups,
            keeps,
            classification=child.data.task == "classification",
            progress=child.progress,
        )
    return Result(values={"structure": structure.model_dump(mode="json"), "damages": damages, "rows": count})
