"""Reads a torch model's layers and channel groups as the allocator takes them."""

from __future__ import annotations

from math import ceil, lcm, prod
from typing import Any

import torch
from torch import Tensor, nn

from tasks.allocate.structure import Structure, TimedLayer, WidthGroup, Work
from tasks.torch_models.channel_groups import ChannelGroup
from tasks.torch_models.channel_pruner import PRUNABLE

_Conv = nn.modules.conv._ConvNd
_TIMED = (*PRUNABLE, nn.RNNBase)
_VECTOR = 16
"""Floats of an AVX-512 register. A training step of a VGG with 16, 32, 32 and 48 channels takes 0.45 ms per row, one
with 12, 24, 24 and 36 channels 0.74 ms (two cores of a Xeon, torch 2.13)."""


def read_structure(
    model: nn.Module,
    inputs: dict[str, Tensor],
    groups: list[ChannelGroup],
    outputs: tuple[str, ...],
    *,
    min_keep: float,
    round_to: int | None,
) -> Structure:
    """The layers as they are called on these preprocessed inputs.

    Args:
        groups: which channels can be removed.
        outputs: names of the layers that make the model's answer.
        min_keep: share of the channels always left.
        round_to: channels left are a multiple of it; groups narrower than that stay whole. None: of a power of two near
            an eighth of the group's width, at most 16, which is what vector instructions take at a time.
    """
    names = {module: name for name, module in model.named_modules()}
    found: dict[tuple[str, Work], TimedLayer] = {}

    def look(module: nn.Module, arguments: tuple[Any, ...], answer: Any) -> None:
        name = names[module]
        work = _work(module, tuple(arguments[0].shape), last=name in outputs)
        if (name, work) in found:
            found[name, work] = found[name, work].model_copy(update={"calls": found[name, work].calls + 1})
            return
        read, made = _widths(module)
        found[name, work] = TimedLayer(
            name=name,
            work=work,
            inputs=read,
            outputs=made,
            input_groups=_shares(groups, name, outputs=False),
            output_groups=_shares(groups, name, outputs=True),
        )

    hooks = [module.register_forward_hook(look) for module in model.modules() if isinstance(module, _TIMED)]
    try:
        with torch.no_grad():
            model.eval()(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return Structure(
        groups=tuple(_group(group, min_keep, round_to) for group in groups),
        layers=tuple(found.values()),
        input_values=sum(prod(value.shape[1:]) for value in inputs.values()),
    )


def _group(group: ChannelGroup, min_keep: float, round_to: int | None) -> WidthGroup:
    unit = lcm(group.parts, group.block, round_to or min(_VECTOR, 1 << max(0, (group.width // 8).bit_length() - 1)))
    lowest = min(max(1, ceil(group.width * min_keep / unit - 1e-9)) * unit, group.width)
    return WidthGroup(name=group.name, layers=group.layers, width=group.width, unit=unit, lowest=lowest)


def _widths(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs."""
    if isinstance(module, nn.RNNBase):
        return module.input_size, module.hidden_size * (2 if module.bidirectional else 1)
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    assert isinstance(module, _Conv)
    return module.in_channels, module.out_channels


def _work(module: nn.Module, shape: tuple[int, ...], *, last: bool) -> Work:
    if isinstance(module, nn.RNNBase):
        steps = shape[1 if module.batch_first and len(shape) == 3 else 0]
        return Work(
            operator="GRU" if isinstance(module, nn.GRU) else "LSTM" if isinstance(module, nn.LSTM) else "RNN",
            size=(steps,),
            layers=module.num_layers,
            directions=2 if module.bidirectional else 1,
            last=last,
        )
    if isinstance(module, nn.Linear):
        if len(shape) == 2:
            return Work(operator="Gemm", last=last)
        return Work(operator="MatMul", size=(prod(shape[1:-1]),), last=last)
    assert isinstance(module, _Conv)
    depthwise = module.groups > 1 and module.groups == module.in_channels == module.out_channels
    return Work(
        operator="ConvTranspose" if module.transposed else "Conv",
        size=shape[2:],
        kernel=tuple(module.kernel_size),
        stride=tuple(module.stride),
        pads=_pads(module),
        dilation=tuple(module.dilation),
        groups=1 if depthwise else module.groups,
        depthwise=depthwise,
        last=last,
    )


def _pads(module: _Conv) -> tuple[int, ...]:
    """Before each dimension, then after each, as ONNX has them."""
    if isinstance(module.padding, str):
        around = [
            d * (k - 1) if module.padding == "same" else 0
            for d, k in zip(module.dilation, module.kernel_size, strict=True)
        ]
        return (*(total // 2 for total in around), *(total - total // 2 for total in around))
    return (*module.padding, *module.padding)


def _shares(groups: list[ChannelGroup], layer: str, *, outputs: bool) -> dict[str, int]:
    members = ((g.name, m) for g in groups for m in g.members)
    return {name: len(m.indices) for name, m in members if m.module == layer and m.outputs == outputs}
