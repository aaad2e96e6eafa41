"""A training step whose gradients torch adds up: each process differentiates its own rows of the batch.

DistributedDataParallel where each process holds the whole model, FSDP2 (torch.distributed.fsdp.fully_shard) where it
holds a share. Bits depend on the number of processes; what is learned does so only by rounding, and by what is drawn
at random, which each rank draws for its own rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tasks.running.errors import SpecError
from tasks.running.ranks import Ranks, others_there
from tasks.torch_models.fit_amp import Amp
from tasks.torch_models.fit_seeding import derive, seed_everything
from tasks.torch_models.micro_shards import LossOf
from tasks.torch_models.split_tensor import is_split, own_rows
from tasks.torch_models.training import Engine

_SPLIT_FROM = 50_000_000
"""Parameters from which ``auto`` splits a model: with AdamW its state takes 0.8 GB."""
_SPLIT_AT_LEAST = 100_000
"""Parameters below which splitting saves nothing that could be measured."""


class TorchEngine:
    """Gradients of batches that the ranks share without shards.

    Args:
        model: what is trained; split already, where it is to be.
        beside: what is trained along, the objective's own parameters; whole on every rank.
        optimizer: its parameters get the gradients.
        ranks: the processes that share a batch, two or more.
        seed: of the training.
    """

    def __init__(
        self, model: nn.Module, beside: nn.Module, optimizer: torch.optim.Optimizer, *, ranks: Ranks, seed: int
    ) -> None:
        self._model, self._optimizer, self._ranks, self._seed = model, optimizer, ranks, seed
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        split = [p for p in parameters if is_split(p)]
        self._apart = [p for p in parameters if split and not is_split(p)]
        self._split = split
        step = _Step(model, beside)
        # Buffers are settled once per epoch: DDP would give all ranks the first one's before each step.
        self._step: nn.Module = (
            step if split else DistributedDataParallel(step, broadcast_buffers=False, find_unused_parameters=True)
        )

    def gradients(
        self, epoch: int, step: int, index: Tensor, loss_of: LossOf, scale: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Give each parameter its gradient of the batch's mean loss, and return that loss; as MicroShards does.

        A rank counts by its rows. A parameter that no rank used has no gradient.
        """
        number, count = self._ranks.number, self._ranks.count
        seed_everything(self._seed, epoch, step, number)
        generator = torch.Generator().manual_seed(derive(self._seed, epoch, step, number))
        part = torch.tensor_split(index, count)[number]
        self._optimizer.zero_grad(set_to_none=True)
        with others_there("lost another", computing=True):
            loss = self._step(loss_of, part, generator) * (len(part) / len(index))
            torch.autograd.backward(scale(loss * count))  # torch divides the sum by their number
        self._average_apart()
        self._forget_unused()
        return self._ranks.total(loss)

    def settle(self) -> None:
        """At an epoch's end: buffers move by the mean of what the ranks have moved them; whole numbers as on the first.

        Those of BatchNorm are the same everywhere already, and so are constants, whose bits must not change.
        """
        for buffer in self._model.buffers():
            first = self._ranks.of_first(buffer)
            if buffer.is_floating_point():
                first += self._ranks.total(buffer - first) / self._ranks.count
            buffer.copy_(first)

    def _average_apart(self) -> None:
        """What FSDP does not hold: the objective's parameters, and scalars."""
        if not self._apart:
            return
        flags = [float(p.grad is not None) for p in self._apart]
        used = self._ranks.total(torch.tensor(flags, device=_of(self._apart)))
        for parameter, count in zip(self._apart, used.tolist(), strict=True):
            if count:
                own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self._ranks.total(own) / self._ranks.count

    def _forget_unused(self) -> None:
        """FSDP gives zeros where no rank has used a parameter; the optimizer would let those decay."""
        if not self._split:
            return
        local = [None if p.grad is None else own_rows(p.grad) for p in self._split]
        nonzero = [float(value is not None and bool(value.any())) for value in local]
        used = self._ranks.total(torch.tensor(nonzero, device=_of(self._split)))
        for parameter, count in zip(self._split, used.tolist(), strict=True):
            if not count:
                parameter.grad = None


class _Step(nn.Module):
    """Model and objective as one module, so that DDP sees the parameters of both."""

    def __init__(self, model: nn.Module, beside: nn.Module) -> None:
        super().__init__()
        self.model, self.beside = model, beside

    def forward(self, loss_of: LossOf, part: Tensor, generator: torch.Generator) -> Tensor:
        return loss_of(part, generator)


def settled_engine(engine: Engine, model: nn.Module) -> Literal["ddp", "fsdp"]:
    """What ``auto`` stands for with this model."""
    if engine != "auto":
        return engine
    return "fsdp" if _size(model) >= _SPLIT_FROM else "ddp"


def check_engine(
    engine: Literal["ddp", "fsdp"], model: nn.Module, *, ranks: Ranks, rows: int, steps: int, amp: Amp
) -> None:
    """See that every rank has rows of each batch, and a model that can be split.

    Args:
        rows: of an epoch.
        steps: batches of an epoch; their sizes differ by at most one.

    Raises:
        SpecError: names the numbers and what to change.
    """
    smallest = rows // steps
    if ranks.count > smallest:
        raise SpecError(
            f"{ranks.count} processes with exact: false: the smallest batch has {smallest} rows, and each process "
            f"needs one; use at most {smallest} processes, or larger batches"
        )
    if engine == "fsdp" and _size(model) < _SPLIT_AT_LEAST:
        raise SpecError(
            f"engine fsdp: {type(model).__name__} has {_size(model):,} parameters, and below {_SPLIT_AT_LEAST:,} "
            "splitting them saves no memory; use engine: ddp"
        )
    if engine == "fsdp" and amp == "fp16":
        raise SpecError("engine fsdp with amp fp16: its gradients are scaled on each process apart; use amp: bf16")


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _of(parameters: list[nn.Parameter]) -> Any:
    return parameters[0].device
