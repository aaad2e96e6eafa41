"""Channel groups: layers whose widths are tied to each other (by residual adds, say), as plain values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tasks.torch_models.channel_layout import block_size


@dataclass(frozen=True)
class Member:
    """One module of a group: its ``indices`` (outputs, else inputs) belong to the group's channels ``roots``."""

    module: str
    outputs: bool
    indices: tuple[int, ...]
    roots: tuple[int, ...]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed together, in every member (DepGraph, Fang et al. 2023, arXiv:2301.12900).

    ``name``: the first of its ``layers`` (convolutions and linear layers whose outputs are the channels) in the order
    of the model, ``root`` the one whose numbering the channels have. ``parts``: number of equal runs of channels, of
    which each loses the same (grouped convolutions, a fixed number of heads). ``block``: channels next to each other
    that go together (heads of a fixed width). ``order``: channels of a run from the least to the most important.
    """

    name: str
    layers: tuple[str, ...]
    width: int
    parts: int
    order: tuple[int, ...]
    members: tuple[Member, ...]
    root: str = ""
    block: int = 1

    def removed(self, keep: int) -> set[int]:
        """The channels that go when ``keep`` of them stay; ``keep`` is a multiple of ``parts`` and of ``block``."""
        run = self.width // self.parts
        gone = self.order[: run - keep // self.parts]
        return {part * run + channel for part in range(self.parts) for channel in gone}


def channel_groups(
    pruner: Any, layers: tuple[type[nn.Module], ...], blocks: dict[nn.Module, int]
) -> list[ChannelGroup]:
    """The groups that a torch-pruning pruner would prune, in the order of the model; those it cannot rank are left out.

    Args:
        pruner: a ``BasePruner``; its importance ranks the channels.
        layers: what counts as a layer.
        blocks: channels that go together, by a layer of their group.
    """
    graph = pruner.DG
    place = {name: number for number, (name, _) in enumerate(pruner.model.named_modules())}
    found = []
    for group in graph.get_all_groups(pruner.ignored_layers, pruner.root_module_types):
        importance = pruner.estimate_importance(group)
        if importance is None:
            continue
        outer = {
            graph._module2name[dep.target.module]
            for dep, _ in group
            if isinstance(dep.target.module, layers) and graph.is_out_channel_pruning_fn(dep.handler)
        }
        named = sorted(outer & place.keys(), key=place.__getitem__)
        parts = int(pruner._get_channel_groups(group))
        found.append(
            ChannelGroup(
                name=named[0],
                layers=tuple(named),
                width=len(importance),
                parts=parts,
                order=tuple(torch.argsort(importance.reshape(parts, -1).mean(dim=0), stable=True).tolist()),
                members=tuple(_members(graph, group, place)),
                root=graph._module2name[group[0].dep.target.module],
                block=block_size(group, blocks),
            )
        )
    return sorted(found, key=lambda group: place[group.name])


def _members(graph: Any, group: Any, known: Iterable[str]) -> Iterable[Member]:
    for number, (dep, indices) in enumerate(group):
        name = graph._module2name.get(dep.target.module)
        if name in known:  # else a free parameter, or an operation without weights
            yield Member(
                module=name,
                outputs=bool(graph.is_out_channel_pruning_fn(dep.handler)),
                indices=tuple(int(i) for i in indices),
                roots=tuple(int(i) for i in group[number].root_idxs),
            )
