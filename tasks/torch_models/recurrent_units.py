"""Hidden units of GRU, LSTM and RNN layers as channels: how torch-pruning follows them, and how they are removed.

A unit goes from every gate, from all that the layer's other units read of it, and from all layers and directions of the
module at once, since these share one ``hidden_size``. Removing it is the same as setting its weights to 0: from a state
of 0 it stays at 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class RecurrentUnits:
    """What torch-pruning asks about a recurrent layer, whose channels are the units of all directions.

    Its ``BasePruningFunc`` in shape, without its import.
    """

    pruning_dim = 1

    def prune_out_channels(self, layer: nn.RNNBase, idxs: Sequence[int]) -> nn.Module:
        """Remove the units; an index of another direction is the same unit."""
        size, directions = layer.hidden_size, _directions(layer)
        gone = {int(i) % size for i in idxs}
        left = torch.tensor([unit for unit in range(size) if unit not in gone])
        for name in layer._flat_weights_names:
            weight = getattr(layer, name)
            rows = _of_each(left, weight.shape[0] // size, size)
            columns = None
            if name.startswith("weight_hh"):
                columns = left
            elif name.startswith("weight_ih") and not _is_first(name):
                columns = _of_each(left, directions, size)
            kept = weight.detach()[rows.to(weight.device)]
            kept = kept if columns is None else kept[:, columns.to(weight.device)]
            setattr(layer, name, nn.Parameter(kept.clone(), requires_grad=weight.requires_grad))
        layer.hidden_size = len(left)
        return layer

    def prune_in_channels(self, layer: nn.RNNBase, idxs: Sequence[int]) -> nn.Module:
        """Let the first layer read fewer values a step."""
        gone = {int(i) for i in idxs}
        left = torch.tensor([i for i in range(layer.input_size) if i not in gone])
        for name in layer._flat_weights_names:
            if name.startswith("weight_ih") and _is_first(name):
                weight = getattr(layer, name)
                kept = weight.detach()[:, left.to(weight.device)].clone()
                setattr(layer, name, nn.Parameter(kept, requires_grad=weight.requires_grad))
        layer.input_size = len(left)
        return layer

    def get_out_channels(self, layer: nn.RNNBase) -> int:
        return _directions(layer) * layer.hidden_size

    def get_in_channels(self, layer: nn.RNNBase) -> int:
        return layer.input_size

    def get_out_channel_groups(self, layer: nn.RNNBase) -> int:
        """Both directions lose the same units."""
        return _directions(layer)

    def get_in_channel_groups(self, layer: nn.RNNBase) -> int:
        return 1


def recurrent_pruners(model: nn.Module) -> dict[type[nn.Module], RecurrentUnits]:
    """torch-pruning's ``customized_pruners`` for the recurrent layers of the model; one value serves all."""
    units = RecurrentUnits()
    return {type(m): units for m in model.modules() if isinstance(m, nn.RNNBase)}


@contextmanager
def traced_as_one(model: nn.Module) -> Iterator[None]:
    """Within it each recurrent layer is one step of autograd, from which all of its answers come; the values are 0.

    torch's own are many steps, in which torch-pruning would lose the units, or one that has several answers.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.RNNBase)]
    for layer in layers:
        layer.forward = partial(_stand_in, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def fixed_layers(model: nn.Module, inputs: dict[str, Tensor]) -> set[nn.Module]:
    """The recurrent layers that have to stay as they are.

    They are called with states made elsewhere, with packed or single sequences, project their states, or have two
    directions whose last states the answer is made of (torch-pruning cannot tell those apart).
    """
    found: set[nn.Module] = set()
    ends: list[tuple[nn.Module, Tensor]] = []

    def look(layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], answer: Any) -> Any:
        given = [*arguments, *named.values()]
        batched = isinstance(given[0], Tensor) and given[0].ndim == 3
        if not batched or any(value is not None for value in given[1:]) or getattr(layer, "proj_size", False):
            found.add(layer)
        if not getattr(layer, "bidirectional", False):
            return None
        states = answer[1] if isinstance(answer[1], tuple) else (answer[1],)
        states = tuple(state.detach().requires_grad_() for state in states)
        ends.extend((layer, state) for state in states)
        return answer[0], (states if isinstance(layer, nn.LSTM) else states[0])

    layers = [m for m in model.modules() if isinstance(m, nn.RNNBase)]
    hooks = [layer.register_forward_hook(look, with_kwargs=True) for layer in layers]
    try:
        with torch.enable_grad():
            answer = model(**inputs) if layers else None
    finally:
        for hook in hooks:
            hook.remove()
    if ends and answer is not None:
        slopes = torch.autograd.grad(answer.float().sum(), [end for _, end in ends], allow_unused=True)
        found |= {layer for (layer, _), slope in zip(ends, slopes, strict=True) if slope is not None}
    return found


class _OneStep(torch.autograd.Function):
    """Zeros of another width, made of the input and the weights as far as autograd knows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, width: int) -> Tensor:
        return x.new_zeros((*x.shape[:-1], width))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError("a traced layer is not trained")


def _stand_in(layer: nn.RNNBase, x: Tensor, states: Any = None) -> Any:
    directions = _directions(layer)
    size = getattr(layer, "proj_size", 0) or layer.hidden_size
    steps: Tensor = _OneStep.apply(x, getattr(layer, layer._flat_weights_names[0]), directions * size)  # type: ignore[no-untyped-call]
    last = steps.select(1 if layer.batch_first and x.ndim == 3 else 0, -1)
    if directions == 2:  # see fixed_layers
        hidden = steps.detach().new_zeros((2 * layer.num_layers, *last.shape[:-1], size))
    else:
        hidden = torch.stack([last] * layer.num_layers)
    return steps, ((hidden, hidden) if isinstance(layer, nn.LSTM) else hidden)


def _directions(layer: nn.RNNBase) -> int:
    return 2 if layer.bidirectional else 1


def _is_first(name: str) -> bool:
    return name.removesuffix("_reverse").endswith("_l0")


def _of_each(units: Tensor, blocks: int, size: int) -> Tensor:
    """The places of the units in each of these equal blocks."""
    return torch.cat([units + block * size for block in range(blocks)])
