"""The layout of convolutions while they work on a CPU: channels last is how oneDNN computes them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tasks.torch_models.split_tensor import is_split

_log = logging.getLogger("winnow.fit")


@contextlib.contextmanager
def channels_last(model: nn.Module, inputs: dict[str, Tensor]) -> Iterator[bool]:
    """Weights [N, C, H, W] in channels-last order while it lasts, on a CPU, if the model computes so; whether it does.

    Measured on one thread of an EPYC with AVX-512, PyTorch 2.13, batches of 128 rows: a training step of VGG, ResNet-20
    or MobileNetV2 at 32x32 takes 0.65 to 0.85 times as long; at 8x8 it makes no difference. Models that call ``view``
    on feature maps cannot have it. Within another one of the same model it does nothing. It depends on the model's
    code and shapes alone, so results stay reproducible.

    Args:
        inputs: preprocessed rows by name, two or more, on the model's device.
    """
    weights = [p for p in model.parameters() if p.ndim == 4]
    on_cpu = all(value.device.type == "cpu" for value in inputs.values())
    usable = bool(weights) and on_cpu and not any(map(is_split, weights))
    done = usable and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    if usable and not done:
        _lay_out(weights, torch.channels_last)
        try:
            with torch.no_grad():
                model.eval()(**inputs)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:  # whoever calls the model next sees it
            _log.info("convolutions stay contiguous: %s", error)
            _lay_out(weights, torch.contiguous_format)
            usable = False
    try:
        with _subsampled(model) if usable else contextlib.nullcontext():
            yield usable
    finally:
        if usable and not done:
            _lay_out(weights, torch.contiguous_format)


@contextlib.contextmanager
def _subsampled(model: nn.Module) -> Iterator[None]:
    """1x1 convolutions that step over places are given those they look at, and step no more.

    For such a convolution of few channels oneDNN 3.x writes past its workspace when it computes the weights' gradient
    in this layout: wrong gradients, a crash, or threads that wait for ever (its issue 6035: fewer than 16 channels with
    AVX-512, than 8 with AVX2).
    """
    kept: list[tuple[nn.Conv2d, tuple[int, ...]]] = []
    hooks = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.stride != (1, 1):
            if layer.padding not in ((0, 0), "valid"):
                continue
            down, across = layer.stride
            hooks.append(layer.register_forward_pre_hook(partial(_every, down, across)))
            kept.append((layer, layer.stride))
            layer.stride = (1, 1)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, stride in kept:
            layer.stride = stride


def _every(down: int, across: int, _layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    features, *others = inputs
    return (features[..., ::down, ::across], *others)


def match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer's state the layout of its parameters: fused steps walk both in memory's order."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _lay_out(weights: list[nn.Parameter], layout: torch.memory_format) -> None:
    for weight in weights:
        weight.data = weight.data.contiguous(memory_format=layout)
