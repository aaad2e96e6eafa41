"""A training step whose bits do not depend on how many processes share it.

A batch is cut into a fixed number of micro-shards, which is part of what the training is; how many processes hold them
is not. Each shard has its own gradient, BatchNorm statistics and randomness, and all are summed in one fixed binary
tree. Sources: Li et al. 2022, "EasyScale: Accuracy-consistent Elastic Training for Deep Learning" (arXiv:2208.14228);
statistics by shard are ghost batch normalization, Hoffer, Hubara, Soudry 2017, "Train longer, generalize better"
(arXiv:1705.08741), section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from tasks.running.errors import SpecError
from tasks.running.ranks import Ranks
from tasks.torch_models.fit_seeding import derive, seed_everything

LossOf = Callable[[Tensor, torch.Generator], Tensor]
"""The mean loss of the rows of these numbers (int64 [N]), augmented with the generator."""


class Sharing(Protocol):
    """How processes or shards share a batch."""

    def gradients(
        self, epoch: int, step: int, index: Tensor, loss_of: LossOf, scale: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Give each parameter its gradient of the batch's mean loss, and return that loss."""

    def settle(self) -> None:
        """At an epoch's end: have the same weights and buffers on every rank."""


_FEWEST_ROWS = 2
"""Of a shard: BatchNorm cannot train on one."""


class MicroShards:
    """Gradients of batches, shard by shard.

    Args:
        modules: what is trained; their buffers are what a forward pass may change (running statistics).
        parameters: whose gradients are wanted.
        shards: of each batch, a power of two.
        ranks: the processes that share them.
        seed: of the training.
    """

    def __init__(
        self, modules: Sequence[nn.Module], parameters: Sequence[nn.Parameter], *, shards: int, ranks: Ranks, seed: int
    ) -> None:
        self._modules, self._parameters = modules, list(parameters)
        self._shards, self._ranks, self._seed = shards, ranks, seed

    def gradients(
        self, epoch: int, step: int, index: Tensor, loss_of: LossOf, scale: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Give each parameter its gradient of the batch's mean loss, move the buffers once, and return that loss.

        A shard counts by its rows. Buffers move by the mean of what the shards would move them; those of whole numbers
        (BatchNorm's counter) as one shard moves them. A parameter that no shard used has no gradient.

        Args:
            index: the batch's rows of the training split, int64 [N].
            scale: of the loss before it is differentiated.
        """
        parts = torch.tensor_split(index, self._shards)
        before = {key: value.clone() for key, value in self._buffers().items()}
        tree = BinaryTree()
        for shard in self._ranks.share(self._shards):
            seed_everything(self._seed, epoch, step, shard)
            generator = torch.Generator().manual_seed(derive(self._seed, epoch, step, shard))
            for key, value in self._buffers().items():
                value.copy_(before[key])
            part = parts[shard]
            loss = loss_of(part, generator) * (len(part) / len(index))
            found = torch.autograd.grad(scale(loss), self._parameters, allow_unused=True)
            used = torch.tensor([gradient is not None for gradient in found], dtype=torch.float32, device=loss.device)
            filled = [p.new_zeros(p.shape) if g is None else g for p, g in zip(self._parameters, found, strict=True)]
            share = len(part) / len(index)
            moved = [(value - before[key]) * share for key, value in self._floating().items()]
            tree.add([loss.detach(), used, *filled, *moved])
        loss, used, *sums = self._ranks.add_up(tree.total())
        give_gradients(self._parameters, sums[: len(self._parameters)], used)
        for (key, value), move in zip(self._floating().items(), sums[len(self._parameters) :], strict=True):
            value.copy_(before[key] + move)
        return loss

    def settle(self) -> None:
        """At an epoch's end nothing is left to do: every rank has done all additions."""

    def _buffers(self) -> dict[str, Tensor]:
        """By a name; asked for each time, since a module may put another tensor in its place."""
        return {f"{n}.{name}": b for n, module in enumerate(self._modules) for name, b in module.named_buffers()}

    def _floating(self) -> dict[str, Tensor]:
        return {key: value for key, value in self._buffers().items() if value.is_floating_point()}


def give_gradients(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor], used: Tensor) -> None:
    """Give each parameter its gradient; one that no shard used, 0 in ``used`` [parameters], has none."""
    for parameter, gradient, count in zip(parameters, gradients, used.tolist(), strict=True):
        # In the parameter's own layout: fused optimizers walk through both as they lie in memory.
        parameter.grad = torch.empty_like(parameter).copy_(gradient) if count else None


class BinaryTree:
    """Adds a power of two of lists of tensors up as a binary tree over their order, and holds a logarithm of them."""

    def __init__(self) -> None:
        self._held: list[tuple[int, list[Tensor]]] = []

    def add(self, leaf: list[Tensor]) -> None:
        height = 0
        while self._held and self._held[-1][0] == height:
            _, left = self._held.pop()
            leaf = [one + other for one, other in zip(left, leaf, strict=True)]
            height += 1
        self._held.append((height, leaf))

    def total(self) -> list[Tensor]:
        ((_, only),) = self._held
        return only


def check_shards(shards: int, ranks: Ranks, *, rows: int, steps: int) -> None:
    """See that every rank has a shard and every shard enough rows.

    Args:
        rows: of an epoch.
        steps: batches of an epoch; their sizes differ by at most one.

    Raises:
        SpecError: names the numbers and what to change.
    """
    if ranks.count > shards or ranks.count & (ranks.count - 1):
        raise SpecError(
            f"{ranks.count} processes cannot share {shards} shards of a batch: use a power of two of them, "
            f"at most {shards}"
        )
    smallest = rows // steps
    if smallest // shards < _FEWEST_ROWS:
        most = 1 << max(0, (smallest // _FEWEST_ROWS).bit_length() - 1)
        advice = f"at most {most}" if most > 1 else "no shards"
        raise SpecError(
            f"parallel.shards {shards}: the smallest batch has {smallest} rows, and a shard needs {_FEWEST_ROWS}; use "
            f"{advice}, or larger batches"
        )
