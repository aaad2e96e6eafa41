"""How the channels of each group may go: one by one, some of every run, in whole blocks, or not at all.

A ``forward()`` that cuts channels into heads counts on their number or on their width. Which of the two cannot be read
off a trace, so it is tried: the model is run without one channel, and where it does not run that way, without one
channel of each of 2, 3, 4 ... equal runs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import lcm
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tasks.torch_models.channel_trial import without
from tasks.torch_models.model_blame import blame

_SAME = 1e-4
"""Of the largest answer: sums in another order differ by less."""


_UNMAPPED = "torch-pruning cannot tell which channels the parts that it is cut into hand on"


@dataclass(frozen=True)
class ChannelLayout:
    """What was found out, by the layer at the root of each group.

    ``parts``: equal runs of channels, each of which loses the same (a head count that is fixed). ``blocks``: channels
    that go together, one after the other (a head width that is fixed). ``left_alone``: layers by name that cannot be
    narrowed, and why.
    """

    parts: dict[nn.Module, int] = field(default_factory=dict)
    blocks: dict[nn.Module, int] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)


def find_layout(
    graph: Any, inputs: dict[str, Tensor], kept: list[nn.Module], layers: tuple[type[nn.Module], ...]
) -> ChannelLayout:
    """Try how the groups of the graph's model can be narrowed; the model is left as it was, in eval mode.

    Args:
        graph: torch-pruning's dependency graph.
        inputs: preprocessed inputs by name, at least two rows.
        kept: modules that are not narrowed.
        layers: what counts as a layer.
    """
    trials = _Trials(graph, inputs)
    ignored = [inner for module in kept for inner in module.modules()]
    groups = list(graph.get_all_groups(ignored, layers))
    layout = ChannelLayout()
    for group in list(groups):
        why = _computed_weight(graph, group) or ("" if _is_mapped(graph, group) else _UNMAPPED)
        if why:
            groups.remove(group)
            layout.left_alone[graph._module2name[group[0].dep.target.module]] = why
    based = [(group, _base(group)) for group in groups]
    layout.parts.update((group[0].dep.target.module, base) for group, base in based if base > 1)
    if trials.run([(group, _one_of_each(group, base)) for group, base in based]) is not None:
        return layout  # nothing counts on a width
    for group, base in based:
        root, width = group[0].dep.target.module, _width(group)
        if width <= base or trials.run([(group, _one_of_each(group, base))]) is not None:
            continue
        why = trials.why
        runs = [p for p in range(base + 1, width // 2 + 1) if width % p == 0 and p % base == 0]
        fits = next((p for p in runs if trials.run([(group, _one_of_each(group, p))]) is not None), None)
        if fits is None:
            layout.left_alone[graph._module2name[root]] = why
        elif base == 1 and trials.is_block(group, fits):
            layout.blocks[root] = fits
        else:
            layout.parts[root] = fits
    return layout


def by_blocks(importance: Callable[[Any], Tensor | None], blocks: dict[nn.Module, int]) -> Callable[[Any], Any]:
    """The importance, which is the same for all channels of a block: they go or stay together."""

    def ranked(group: Any) -> Tensor | None:
        found = importance(group)
        size = block_size(group, blocks)
        return found if found is None or size == 1 else found.reshape(-1, size).mean(1).repeat_interleave(size)

    return ranked


def block_size(group: Any, blocks: dict[nn.Module, int]) -> int:
    """Channels that go together in the group; 1: each on its own."""
    made = [
        dependency.target.module for dependency, _ in group if group._DG.is_out_channel_pruning_fn(dependency.handler)
    ]
    return max((blocks.get(module, 1) for module in made), default=1)


def whole_blocks(ratio: float, width: int, size: int) -> float:
    """The share of the channels that goes where only whole blocks can; at least one block stays."""
    count = width // size
    return 1 - max(1, round(count * (1 - ratio))) / count


class _Trials:
    def __init__(self, graph: Any, inputs: dict[str, Tensor]) -> None:
        self.graph, self.model, self.inputs = graph, graph.model, inputs
        self.model.eval()
        self.whole = self._answer()
        self.why = ""
        """Why the last run failed."""

    def run(self, removals: list[tuple[Any, set[int]]]) -> Tensor | None:
        """The answer without these channels; None if there is none, or one of another shape."""
        try:
            with ExitStack() as stack:
                for group, gone in removals:
                    stack.enter_context(without(self.graph, group, gone))
                answer = self._answer()
        except Exception as error:  # noqa: BLE001 - whatever the user's forward() raises, or torch-pruning
            self.why = f"{blame(error, self.model)}{type(error).__name__}: {error}"
            return None
        self.why = f"the answer would have shape {list(answer.shape)}"
        return answer if answer.shape == self.whole.shape else None

    def is_block(self, group: Any, size: int) -> bool:
        """Whether removing the first ``size`` channels is the same as setting their weights to 0.

        So it is for a whole head, and not where the channels that are left would become parts of other heads.
        """
        gone = set(range(size))
        removed = self.run([(group, gone)])
        if removed is None:
            return False
        silent = self._silenced(group, gone)
        return bool((removed - silent).abs().max() <= _SAME * self.whole.abs().max())

    def _silenced(self, group: Any, gone: set[int]) -> Tensor:
        """The answer where the layers that read the channels take no notice of them."""
        saved: list[tuple[Tensor, Tensor]] = []
        try:
            for number, (dependency, indices) in enumerate(group):
                module = dependency.target.module
                if isinstance(module, nn.Linear) and not self.graph.is_out_channel_pruning_fn(dependency.handler):
                    roots = group[number].root_idxs
                    index = [int(i) for i, root in zip(indices, roots, strict=True) if int(root) in gone]
                    saved.append((module.weight, module.weight.detach().clone()))
                    with torch.no_grad():
                        module.weight[:, index] = 0
            return self._answer()
        finally:
            with torch.no_grad():
                for weight, value in reversed(saved):
                    weight.copy_(value)

    def _answer(self) -> Tensor:
        with torch.no_grad():
            answer: Tensor = self.model(**self.inputs)
        return answer


def _computed_weight(graph: Any, group: Any) -> str:
    """Which layer of the group has a weight that is computed of others at every call, and what to do; '' if none has.

    torch-pruning narrows weights, and knows nothing of what they are computed of.
    """
    for dependency, _ in group:
        module = dependency.target.module
        if parametrize.is_parametrized(module):
            name, computed = next(iter(module.parametrizations.items()))
            return (
                f"{name} of {graph._module2name[module]!r} is computed by {type(computed[0]).__name__.strip('_')}; to "
                f"narrow it, fold that in model(): torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r})"
            )
    return ""


def _is_mapped(graph: Any, group: Any) -> bool:
    """Whether the channels are such as the layers have: of a projection that is cut into three they are not always."""
    for dependency, indices in group:
        module, known = dependency.target.module, graph.get_pruner_of_module(dependency.target.module)
        if isinstance(module, nn.Linear):
            out = graph.is_out_channel_pruning_fn(dependency.handler)
            if max(indices) >= (known.get_out_channels(module) if out else known.get_in_channels(module)):
                return False
    return True


def _width(group: Any) -> int:
    return len(group[0].idxs)


def _one_of_each(group: Any, parts: int) -> set[int]:
    """The first channel of each of so many runs; none of a group that would be left empty."""
    run = _width(group) // parts
    return {part * run for part in range(parts)} if run > 1 else set()


def _base(group: Any) -> int:
    """Runs that the layers themselves ask for: groups of a convolution or norm, heads, directions."""
    found = 1
    for dependency, _ in group:
        module = dependency.target.module
        if isinstance(module, nn.GroupNorm):
            found = lcm(found, module.num_groups)
        elif isinstance(module, nn.MultiheadAttention):
            found = lcm(found, module.num_heads)
        elif isinstance(module, nn.RNNBase) and module.bidirectional:
            found = lcm(found, 2)
        elif isinstance(module, nn.modules.conv._ConvNd) and 1 < module.groups < module.in_channels:
            found = lcm(found, module.groups)
    return found if _width(group) % found == 0 else 1
