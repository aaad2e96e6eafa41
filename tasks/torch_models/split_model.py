"""A model of which each process has a share while it is trained: FSDP2, put on and taken off in place."""

from __future__ import annotations

import contextlib
import ctypes

import torch
from torch import Tensor, nn
from torch.distributed._composable_state import _module_state_mapping
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from tasks.running.errors import WorkloadError
from tasks.running.ranks import Ranks, others_there
from tasks.torch_models.fit_rows import call_model
from tasks.torch_models.modules_called import modules_called

_LARGEST_UNIT = 0.25
_SMALLEST_UNIT = 0.01
"""Of all parameters. A unit is gathered as one: large ones take memory, small ones take messages."""


_MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of malloc.h."""


class SplitModel:
    """Splits a model on the ranks of the process group: each keeps its rows of every weight, by torch's FSDP2.

    Units that are gathered together are the largest modules of at most a quarter of all parameters that the model calls
    and whose weights nobody else has; blocks of a network, as a rule. What is left belongs to the model itself. Scalars
    and weights that are no floating point numbers stay whole.

    Args:
        model: whole, and the same on every rank; split in place.
        inputs: preprocessed rows by name, two or more.

    Raises:
        WorkloadError: the model does not answer when it is split.
    """

    def __init__(self, model: nn.Module, inputs: dict[str, Tensor]) -> None:
        self._model = model
        device = next(model.parameters()).device
        self.mesh = init_device_mesh(device.type, (Ranks.current().count,))
        units = _units(model, inputs)
        if device.type == "cpu":
            _give_memory_back()
        whole = {p for p in model.parameters() if p.ndim == 0 or not p.is_floating_point()}
        self._before = [_Before(module) for module in model.modules()]
        self._kept = {name: p for name, p in model.named_parameters(remove_duplicate=False) if p not in whole}
        for parameter in self._kept.values():
            if not parameter.is_contiguous():
                parameter.data = parameter.data.contiguous()
        for module in [*units, model]:
            # The root's weights would stay gathered after an evaluation.
            fully_shard(module, mesh=self.mesh, ignored_params=whole, reshard_after_forward=True)
        for parameter in self._kept.values():
            parameter.data = parameter.data.new_empty(0)  # each rank has its share now
        if isinstance(model, FSDPModule):
            model.set_reduce_scatter_unused_params(True)
        try:
            with torch.no_grad():
                call_model(model.eval(), inputs)
        except WorkloadError as error:
            raise WorkloadError(
                f"{type(model).__name__} does not answer with its weights split: {error}; a module that uses weights "
                "of another one, or calls it otherwise than as a function, cannot be split: use engine: ddp"
            ) from error

    def join(self, state: dict[str, Tensor]) -> None:
        """Make the model the whole one again that it was, with these weights and buffers on every rank.

        Args:
            state: a ``state_dict`` of the split model, emptied on the way: weights are gathered one by one.
        """
        for before in self._before:
            before.restore()
        done: set[int] = set()
        for name, parameter in self._kept.items():
            value = state.pop(name)
            if id(parameter) not in done:
                with others_there("lost another"):
                    parameter.data = _whole(value)
                done.add(id(parameter))
        for name, value in self._model.state_dict().items():
            if name in state:
                value.copy_(state[name])


class _Before:
    """What a module was before FSDP changed its class and gave it hooks and other parameters."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.kind, self.names = module, type(module), set(vars(module))
        self.tables = {
            name: dict(table)
            for name, table in vars(module).items()
            if isinstance(table, dict) and (name == "_parameters" or "_hooks" in name)
        }

    def restore(self) -> None:
        _module_state_mapping.pop(self.module, None)
        self.module.__class__ = self.kind
        for name in set(vars(self.module)) - self.names:
            if "fsdp" in name or "composable" in name:
                del vars(self.module)[name]
        for name, kept in self.tables.items():
            table = vars(self.module)[name]
            table.clear()
            table.update(kept)


def _give_memory_back() -> None:
    """Have glibc take each large tensor from the system, and give it back at once; from now on, in the whole process.

    FSDP makes and frees weights of every unit twice a step. By itself glibc keeps what is below 32 MB in its heap, in
    pieces: two processes that train 104 million weights then take 3.4 GB each, with this 1.4.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 20)


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor().detach().clone() if isinstance(value, DTensor) else value.detach().clone()


def _units(model: nn.Module, inputs: dict[str, Tensor]) -> list[nn.Module]:
    """The modules that are gathered one after the other, inner ones first."""
    with modules_called(model) as called, torch.no_grad():
        call_model(model.eval(), inputs)
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    total = sum(p.numel() for p in model.parameters())

    def own(module: nn.Module) -> bool:
        inside: dict[int, int] = {}
        for inner in module.modules():
            for parameter in inner.parameters(recurse=False):
                inside[id(parameter)] = inside.get(id(parameter), 0) + 1
        return all(owners[number] == count for number, count in inside.items())

    def walk(module: nn.Module) -> list[nn.Module]:
        found: list[nn.Module] = []
        for child in module.children():
            size = sum(p.numel() for p in child.parameters())
            if size < _SMALLEST_UNIT * total:
                continue
            inner = walk(child) if size > _LARGEST_UNIT * total else []
            found += inner
            if not inner and child in called and own(child):
                found.append(child)
        return found

    return list(dict.fromkeys(walk(model)))
