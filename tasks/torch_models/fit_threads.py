"""How many CPU threads a model is worth: handing tiny layers to several costs more than it saves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tasks.torch_models.fit_rows import call_model

_WORTH_SHARING = 30_000_000
"""Multiply-accumulates of one batch's forward pass. Measured on 2 cores: a CNN of 22 million takes as long with two
threads as with one (and many times longer when another process wants a core), one of 68 million 0.6 times as long."""


@contextlib.contextmanager
def worthwhile_threads(
    model: nn.Module, inputs: dict[str, Tensor], batch_size: int, *, shards: int = 1
) -> Iterator[None]:
    """One thread for a small model, else those allowed. It depends on shapes alone, so results stay reproducible.

    Args:
        shards: of a batch. Several are shared out among processes instead of threads, which would change the bits.
    """
    before = torch.get_num_threads()
    on_cpu = all(value.device.type == "cpu" for value in inputs.values())
    if on_cpu and (shards > 1 or row_macs(model, inputs) * batch_size < _WORTH_SHARING):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def row_macs(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Multiply-accumulates per row of the layers with kernels or matrices, by one forward pass; an estimate."""
    total = 0

    def count(module: nn.Module, arguments: Any, output: Any) -> None:
        nonlocal total
        weight = getattr(module, "weight", None)
        if isinstance(output, Tensor) and isinstance(weight, Tensor) and weight.ndim >= 2:
            total += output.numel() * weight[0].numel()

    hooks = [module.register_forward_hook(count) for module in model.modules()]
    try:
        with torch.no_grad():
            call_model(model.eval(), inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return total // len(next(iter(inputs.values())))
