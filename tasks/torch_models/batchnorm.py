"""BatchNorm after layers went: its statistics belong to the whole network, so they are measured again."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def reestimate_batchnorm(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> int:
    """Replace the running statistics, in place, by the average over these training batches; no weight changes.

    The rest of the network stays in evaluation (no dropout). Source: adaptive batch normalization, EagleEye, Li et al.
    2020, arXiv:2007.02491.

    Returns:
        The number of BatchNorm layers.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not layers:
        return 0
    training = model.training
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average
        layer.train()
    try:
        with torch.no_grad():
            for inputs in batches:
                model(**inputs)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        model.train(training)
    return len(layers)
