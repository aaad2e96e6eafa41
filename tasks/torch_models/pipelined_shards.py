"""A training step through which shards pass from process to process: each computes some of the model's blocks.

The shards, their randomness and the order of additions are those of tasks/torch_models/micro_shards.py, and so are the
bits: how many processes a model is cut among decides nothing. A process has gradients and the optimizer's state of its
own blocks alone, and sends activations instead of gradients. The schedule is 1F1B: after as many forward passes as
there are processes behind it, each process alternates between a backward and a forward pass, so that it holds the
activations of so many shards and no more (Narayanan et al. 2019, "PipeDream", SOSP, section 3.2; Narayanan et al. 2021,
arXiv:2104.04473, section 2.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tasks.running.errors import WorkloadError
from tasks.running.rank_messages import RankMessages
from tasks.running.ranks import Ranks
from tasks.torch_models.fit_checkpoint import Checkpoints, pack, unpack
from tasks.torch_models.fit_seeding import derive, random_state, seed_everything, set_random_state
from tasks.torch_models.micro_shards import BinaryTree, LossOf, give_gradients
from tasks.torch_models.modules_called import modules_called
from tasks.torch_models.objective import TrainingBatch

Block = Callable[..., Tensor]
"""The first takes the preprocessed inputs by name, each other one what the one before it answers, a tensor [N, ...]."""


@dataclass
class _Passing:
    """A shard between its forward and its backward pass: what came in, what goes out, and what moved of the buffers."""

    came: Tensor | None
    made: Tensor
    moved: list[Tensor]


class PipelinedShards:
    """Gradients of batches whose shards pass through the ranks.

    Args:
        model: whole on every rank; between :meth:`settle` and the next step too.
        blocks: of the model, in their order; as many as there are ranks, or more.
        sample: preprocessed rows by name, two or more.
        batch_of: the rows of a shard, augmented with the generator, as :data:`LossOf` sees them.
        loss_of: the loss of answers to a batch.
        computing: what forward passes run in: mixed precision.
        shards: of each batch, a power of two.
        seed: of the training.

    Raises:
        WorkloadError: the blocks are not the model.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[Block],
        sample: dict[str, Tensor],
        *,
        batch_of: Callable[[Tensor, torch.Generator], TrainingBatch],
        loss_of: Callable[[Tensor, TrainingBatch], Tensor],
        computing: Callable[[], AbstractContextManager[Any]],
        shards: int,
        seed: int,
    ) -> None:
        self._model, self._batch_of, self._loss_of, self._computing = model, batch_of, loss_of, computing
        self._shards, self._seed, self._ranks = shards, seed, Ranks.current()
        self._device = next(iter(sample.values())).device
        self._messages = RankMessages(self._device)
        self._stages = Stages(model, blocks, sample, self._ranks.count)
        number = self._ranks.number
        self._blocks = self._stages.blocks[number]
        self._parameters = [p for p in self._stages.parameters[number] if p.requires_grad]

    def gradients(
        self, epoch: int, step: int, index: Tensor, _whole: LossOf, scale: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """As :meth:`MicroShards.gradients`, of this rank's parameters; those of others have none."""
        for parameter in self._model.parameters():
            parameter.grad = None
        parts, ranks = torch.tensor_split(index, self._shards), self._ranks
        before = {name: value.clone() for name, value in self._model.named_buffers()}
        tree, passing = BinaryTree(), dict[int, _Passing]()

        def forward(shard: int) -> None:
            part = parts[shard]
            seed_everything(self._seed, epoch, step, shard)
            for name in before:  # new ones: a backward pass may need what another shard had
                self._put(name, before[name].clone())
            passing[shard] = self._forward(part, derive(self._seed, epoch, step, shard), len(part) / len(index), before)

        def backward(shard: int) -> None:
            tree.add(self._backward(passing.pop(shard), scale))

        for shard in _one_forward_one_backward(self._shards, behind=ranks.count - 1 - ranks.number):
            (forward if shard >= 0 else backward)(shard if shard >= 0 else -1 - shard)
        self._messages.wait()
        loss, used, *sums = tree.total()
        give_gradients(self._parameters, sums[: len(self._parameters)], used)
        for (name, _), move in zip(self._floating(), sums[len(self._parameters) :], strict=True):
            self._put(name, before[name] + move)
        return ranks.of(ranks.count - 1, loss.double())  # the others do not know which type the last one's has

    def settle(self) -> None:
        """At an epoch's end: every rank gets the others' weights and buffers."""
        tensors = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        for rank, own in enumerate(self._stages.names):
            for name in own:
                value = tensors[name].data
                value.copy_(self._ranks.of(rank, value.contiguous()))

    def keep_own(self, optimizer: torch.optim.Optimizer) -> None:
        """Forget the optimizer's state of other ranks' parameters, which a checkpoint has."""
        for parameter in set(optimizer.state) - set(self._parameters):
            del optimizer.state[parameter]

    def save(
        self,
        checkpoints: Checkpoints,
        epoch: int,
        tree: Callable[[], dict[str, Any]],
        optimizer: torch.optim.Optimizer,
        *,
        last: bool,
    ) -> None:
        """Save a state that holds the optimizer's of all ranks. Each calls it, and the first decides if it is time.

        Args:
            tree: the state as the first rank has it, as for :func:`tasks.torch_models.fit_checkpoint.pack`.
        """
        ranks, asked = self._ranks, False

        def make() -> bytes:
            nonlocal asked
            asked = True
            ranks.of_first(torch.ones(1))
            made = tree()
            made["optimizer"]["state"] |= self._collected(optimizer)
            return pack(made)

        if ranks.number == 0:
            checkpoints.save(epoch, make, last=last)
            if not asked:
                ranks.of_first(torch.zeros(1))
        elif ranks.of_first(torch.zeros(1)).item():
            self._collected(optimizer)

    def _collected(self, optimizer: torch.optim.Optimizer) -> dict[int, Any]:
        """The optimizer's state of all ranks but the first, there; one after the other, for it is as large as two
        models."""
        found: dict[int, Any] = {}
        own = pack(optimizer.state_dict()["state"])
        for rank in range(1, self._ranks.count):
            if self._ranks.number == rank:
                self._messages.send(torch.frombuffer(bytearray(own), dtype=torch.uint8), 0)
                self._messages.wait()
            elif self._ranks.number == 0:
                theirs = unpack(self._messages.receive(rank).cpu().numpy().tobytes())
                found |= {int(number): state for number, state in theirs.items()}
        return found

    def _forward(self, part: Tensor, seed: int, share: float, before: dict[str, Tensor]) -> _Passing:
        """A shard's forward pass through this rank's blocks, and on its way to the next rank."""
        ranks, batch, came = self._ranks, None, None
        first, last = ranks.number == 0, ranks.number == ranks.count - 1
        if first or last:
            batch = self._batch_of(part, torch.Generator().manual_seed(seed))
        if not first:
            came = self._messages.receive(ranks.number - 1)
            came.requires_grad_(came.is_floating_point())
            set_random_state(self._messages.receive(ranks.number - 1), self._device)
        with self._computing():
            # A copy, for a block may begin by changing what it gets in its place.
            made = _through(self._blocks, came.clone() if came is not None else batch.inputs if batch else None)
        if last and batch is not None:
            made = self._loss_of(made, batch) * share
        else:
            self._messages.send(made, ranks.number + 1)
            self._messages.send(random_state(self._device), ranks.number + 1)
        return _Passing(came, made, [(value - before[name]) * share for name, value in self._floating()])

    def _backward(self, shard: _Passing, scale: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """A shard's backward pass; its loss (0 before the last rank), which parameters it used, gradients and moves."""
        ranks = self._ranks
        last = ranks.number == ranks.count - 1
        below = None if last else self._messages.receive(ranks.number + 1)
        wanted = [*self._parameters, *([shard.came] if shard.came is not None and shard.came.requires_grad else ())]
        found: list[Tensor | None] = [None] * len(wanted)
        if wanted and shard.made.requires_grad:
            answer = scale(shard.made) if last else shard.made
            found = list(torch.autograd.grad(answer, wanted, below, allow_unused=True))
        if shard.came is not None:
            inwards = found.pop() if shard.came.requires_grad else None
            self._messages.send(torch.zeros_like(shard.came) if inwards is None else inwards, ranks.number - 1)
        loss = shard.made.detach() if last else torch.zeros((), device=self._device)
        used = torch.tensor([gradient is not None for gradient in found], dtype=torch.float32, device=loss.device)
        filled = [p.new_zeros(p.shape) if g is None else g for p, g in zip(self._parameters, found, strict=True)]
        return [loss, used, *filled, *shard.moved]

    def _floating(self) -> list[tuple[str, Tensor]]:
        """Buffers of the model by name; asked for each time, for each shard has its own."""
        return [(name, value) for name, value in self._model.named_buffers() if value.is_floating_point()]

    def _put(self, name: str, value: Tensor) -> None:
        owner, _, own = name.rpartition(".")
        setattr(self._model.get_submodule(owner), own, value)


class Stages:
    """A model's blocks in as many stages as there are processes, of about equal work.

    Attributes:
        blocks: by stage.
        parameters: by stage; those that no stage uses are the first one's.
        names: of parameters and buffers, by stage.

    Args:
        sample: preprocessed rows by name, two or more.
        count: of the stages, at most that of the blocks.

    Raises:
        WorkloadError: the blocks do not answer as the model does, a parameter lies in two stages, or one that can be
            trained, or a buffer that training changes, lies in none.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[Block], sample: dict[str, Tensor], count: int) -> None:
        kind = type(model).__name__
        costs, used = _examined(model, blocks, sample)
        ends = _balanced(costs, count)
        self.blocks = [tuple(blocks[begin:end]) for begin, end in pairwise(ends)]
        held = [set[Tensor]().union(*used[begin:end]) for begin, end in pairwise(ends)]
        named = dict(model.named_parameters())
        for name, parameter in named.items():
            stages = [number for number, tensors in enumerate(held) if parameter in tensors]
            if len(stages) > 1:
                raise WorkloadError(
                    f"{name} of {kind} belongs to blocks of two processes, and only one of them can train it; make one "
                    "block of what shares it, or use exact: false with engine: fsdp"
                )
            if not stages and parameter.requires_grad:
                raise WorkloadError(
                    f"{name} of {kind} belongs to none of its blocks; blocks() must name all of the model"
                )
        rest = {p for p in named.values() if not any(p in tensors for tensors in held)}
        self.parameters = [
            [p for p in named.values() if p in tensors or (number == 0 and p in rest)]
            for number, tensors in enumerate(held)
        ]
        buffers = dict(model.named_buffers())
        self.names = [
            [
                *(name for name, p in named.items() if any(p is one for one in own)),
                *(name for name, b in buffers.items() if b in tensors),
            ]
            for own, tensors in zip(self.parameters, held, strict=True)
        ]
        known = set[str]().union(*self.names)
        if moved := _moved(model, blocks, sample, {n: b for n, b in buffers.items() if n not in known}):
            raise WorkloadError(
                f"{moved} of {kind} changes in training and belongs to none of its blocks; update it in a module that "
                "one of them is or calls"
            )


def _moved(model: nn.Module, blocks: Sequence[Block], sample: dict[str, Tensor], buffers: dict[str, Tensor]) -> str:
    """The first of these buffers that a forward pass in training changes; all are left as they were. Empty: none."""
    if not buffers:
        return ""
    state = {name: value.clone() for name, value in model.named_buffers()}
    model.train()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        _through(blocks, sample)
    after = dict(model.named_buffers())
    changed = next((name for name in buffers if not torch.equal(after[name], state[name])), "")
    model.eval()
    for name, value in after.items():
        value.copy_(state[name])
    return changed


def _examined(
    model: nn.Module, blocks: Sequence[Block], sample: dict[str, Tensor]
) -> tuple[list[float], list[set[Tensor]]]:
    """What each block costs for the sample (multiplications, and a little for each parameter), and the parameters and
    buffers that it uses: of a module all, of a function those of modules that it calls, and those it takes itself.

    Raises:
        WorkloadError: one after the other they do not answer as the model does.
    """
    model.eval()
    kind, costs, used, given = type(model).__name__, list[float](), list[set[Tensor]](), None
    parameters = [p for p in model.parameters() if p.requires_grad]
    with modules_called(model):  # as the blocks are: with gradients and hooks a layer may take another way
        wanted = model(**sample).detach()
    for block in blocks:
        try:
            with FlopCounterMode(display=False) as counted, modules_called(model) as called:
                made = block(**sample) if given is None else block(given)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise WorkloadError(
                f"block {len(costs) + 1} of {kind} does not take what the one before it answers: {error}; the first "
                "takes the inputs by name, each other one tensor"
            ) from error
        if not isinstance(made, Tensor):
            raise WorkloadError(
                f"block {len(costs) + 1} of {kind} answers a {type(made).__name__}; blocks pass one tensor on"
            )
        tensors = {*block.parameters(), *block.buffers()} if isinstance(block, nn.Module) else set[Tensor]()
        for module in called:
            tensors |= {*module.parameters(recurse=False), *module.buffers(recurse=False)}
        if made.requires_grad and made.is_floating_point():
            found = torch.autograd.grad(made.float().sum(), parameters, allow_unused=True)
            tensors |= {p for p, gradient in zip(parameters, found, strict=True) if gradient is not None}
        costs.append(float(counted.get_total_flops()) + sum(value.numel() for value in tensors) * 1e-3 + 1e-6)
        used.append(tensors)
        given = made.detach()
    if given is None or not torch.equal(given, wanted):
        raise WorkloadError(
            f"the {len(blocks)} blocks of {kind}, one after the other, do not answer as the model itself does"
        )
    return costs, used


def _balanced(costs: Sequence[float], count: int) -> list[int]:
    """Where so many runs of neighbours begin and end, so that the dearest one costs least."""
    total = [0.0]
    for cost in costs:
        total.append(total[-1] + cost)
    best = {(0, 0): (0.0, [0])}
    for stage in range(1, count + 1):
        for end in range(stage, len(costs) + 1):
            options = (
                (max(best[stage - 1, begin][0], total[end] - total[begin]), best[stage - 1, begin][1])
                for begin in range(stage - 1, end)
                if (stage - 1, begin) in best
            )
            dearest, ends = min(options, default=(math.inf, []))
            best[stage, end] = (dearest, [*ends, end])
    return best[count, len(costs)][1]


def _one_forward_one_backward(shards: int, *, behind: int) -> Iterator[int]:
    """Passes of a rank in their order: shard n's forward as n, its backward as -1 - n.

    Args:
        behind: ranks behind this one.
    """
    ahead = min(behind, shards)
    for shard in range(shards):
        yield shard
        if shard >= ahead:
            yield -1 - (shard - ahead)
    for shard in range(shards - ahead, shards):
        yield -1 - shard


def _through(blocks: Sequence[Block], given: dict[str, Tensor] | Tensor | None) -> Tensor:
    first, *others = blocks
    made = first(**given) if isinstance(given, dict) else first(given)
    for block in others:
        made = block(made)
    return made
