"""BatchNorm over the rows of all processes that share a batch, on any device: torch's SyncBatchNorm refuses CPUs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tasks.running.ranks import others_there


@contextlib.contextmanager
def synced_batchnorm(model: nn.Module) -> Iterator[int]:
    """While it lasts, the model's BatchNorm layers train with the statistics of all ranks' rows; the number of them.

    What is normalized, and the running statistics, are those of one process with the whole batch but for rounding, and
    the same bits on every rank. Layers of a class with a ``forward`` of its own are left alone. Every rank must call
    the same layers in the same order.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and type(m).forward is _BatchNorm.forward]
    # A group of their own: the order of DDP's messages in the backward pass depends on which weights a rank used.
    group = dist.new_group() if layers else None
    for layer in layers:
        layer.forward = partial(_normalized, layer, group)  # type: ignore[method-assign]
    yield len(layers)
    for layer in layers:
        del layer.forward
    if group is not None:
        dist.destroy_process_group(group)  # not after an error: ending a broken group may wait


def _normalized(layer: _BatchNorm, group: Any, features: Tensor) -> Tensor:
    """What the layer answers to this rank's part of the features [N, C, ...]."""
    if not (layer.training or layer.running_mean is None):
        return _BatchNorm.forward(layer, features)
    layer._check_input_dim(features)  # type: ignore[no-untyped-call]
    values = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
    others = [axis for axis in range(values.ndim) if axis != 1]
    shape = [1, -1, *[1] * (values.ndim - 2)]
    here = values.new_tensor([values.numel() / values.shape[1]])
    sums, count = _summed(torch.cat([values.sum(others), here]), group).tensor_split([-1])
    mean = sums / count
    centered = values - mean.view(shape)
    # Two passes: the difference of a mean of squares and a squared mean loses its digits.
    variance = _summed(centered.square().sum(others), group) / count
    with torch.no_grad():
        _move_statistics(layer, mean, variance * (count / (count - 1)))
    answer = centered * torch.rsqrt(variance + layer.eps).view(shape)
    if layer.affine:
        answer = answer * layer.weight.view(shape) + layer.bias.view(shape)
    narrowed: Tensor = answer.to(features.dtype)
    return narrowed


def _move_statistics(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    if layer.running_mean is None or layer.running_var is None or layer.num_batches_tracked is None:
        return
    layer.num_batches_tracked += 1
    rate = 1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), rate)
    layer.running_var.lerp_(variance.to(layer.running_var.dtype), rate)


def _summed(value: Tensor, group: Any) -> Tensor:
    total: Tensor = _Summed.apply(value, group)  # type: ignore[no-untyped-call]
    return total


class _Summed(torch.autograd.Function):
    """The sum over all ranks; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _sum(value, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _sum(gradients[0], ctx.group), None


def _sum(value: Tensor, group: Any) -> Tensor:
    total = value.contiguous().clone()
    with others_there("lost another in a BatchNorm layer"):
        dist.all_reduce(total, group=group)
    return total
