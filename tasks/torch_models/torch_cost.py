"""What a torch model costs on paper: its parameters and multiply-accumulates."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import mha
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class TorchCost:
    """``parameters``: shared ones once. ``macs``: multiply-accumulates of one sample, in convolutions and matrix
    products only (the work that grows with the model)."""

    parameters: int
    macs: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def torch_cost(model: nn.Module, inputs: dict[str, Tensor]) -> TorchCost:
    """Count the model for the first row of these preprocessed inputs."""
    training, fused = model.training, mha.get_fastpath_enabled()
    model.eval()
    # Fused attention and fused encoder layers are not in the counter's list; spelled out they are matrix products.
    mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(**{name: value[:1] for name, value in inputs.items()})
    finally:
        mha.set_fastpath_enabled(fused)
    model.train(training)
    return TorchCost(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)
