"""Which widths of which layers are tried, on which rows, so that the time it takes stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from tasks.allocate.layer_shapes import read_structure
from tasks.allocate.sensitivity import Damages, measure_damage
from tasks.allocate.structure import Structure
from tasks.running.splits import Columns
from tasks.running.task_kind import TaskKind
from tasks.torch_models.channel_pruner import ChannelPruner
from tasks.torch_models.fit_layout import channels_last
from tasks.torch_models.fit_rows import Rows, torch_device
from tasks.torch_models.fit_seeding import reproducible
from tasks.torch_models.fit_threads import row_macs, worthwhile_threads
from tasks.workloads.workload import Workload

_MOST_MACS = 2e12
"""Multiply-accumulates in all: about a minute of one core. Larger models are asked fewer rows."""
_FEWEST_ROWS = 64


@dataclass(frozen=True)
class Trials:
    """What is tried; each as ``SensitivitySpec`` describes it."""

    rows: int
    removals: tuple[float, ...]
    min_keep: float
    round_to: int | None
    ignore: tuple[str, ...]

    @classmethod
    def of(cls, spec: Mapping[str, Any], hints: Mapping[str, Any]) -> Trials:
        """What a stage's spec says, and the workload's hints where it says nothing."""
        said = {field.name: spec[field.name] for field in fields(cls)}
        said["round_to"] = spec["round_to"] or hints.get("round_to")
        said["ignore"] = (*hints.get("ignore", ()), *spec["ignore"])
        return cls(**said)


@dataclass(frozen=True)
class Sensitivity:
    """The model's layers, what narrowing each group of them does, on how many rows that was measured, and which layers
    are left alone, and why."""

    structure: Structure
    damages: Damages
    rows: int
    left_alone: dict[str, str]


def find_sensitivity(
    model: nn.Module,
    workload: Workload,
    columns: Columns,
    trials: Trials,
    *,
    task: TaskKind,
    seed: int,
    device: str,
    progress: Callable[[float, str], None],
) -> Sensitivity:
    """Narrow each group of the model to each width of the trials; the model ends on the device, as it was.

    Args:
        columns: of the split that is asked, never the test split; ``seed``: which of its rows.

    Raises:
        PruningRefused: see :class:`tasks.torch_models.channel_pruner.ChannelPruner`.
    """
    where = torch_device(device)
    model.to(where)
    rows = Rows(workload, columns, where)
    sample = rows(torch.arange(2), None).inputs
    pruner = ChannelPruner(model, sample, ratio=0.5, ignore=trials.ignore)
    groups = pruner.groups()
    structure = read_structure(
        model, sample, groups, pruner.outputs, min_keep=trials.min_keep, round_to=trials.round_to
    )
    keeps = {
        group.name: sorted({group.lowest, *(group.nearest(1 - r) for r in trials.removals)} - {group.width})
        for group in structure.groups
    }
    asked = sum(map(len, keeps.values())) + 1
    affordable = max(_FEWEST_ROWS, int(_MOST_MACS / (row_macs(model, sample) * asked)))
    count = min(rows.count, trials.rows, affordable)
    order = torch.randperm(rows.count, generator=torch.Generator().manual_seed(seed))[:count]
    chosen = Rows(workload, {name: values[order.numpy()] for name, values in columns.items()}, where)
    with reproducible(where, True), worthwhile_threads(model, sample, count), channels_last(model, sample):
        damages = measure_damage(pruner, chosen, groups, keeps, task=task, progress=progress)
    return Sensitivity(structure, damages, count, pruner.left_alone)
