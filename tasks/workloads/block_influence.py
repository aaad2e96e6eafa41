"""How much each block of a network changes what passes through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def block_influence(blocks: Mapping[str, nn.Module], run: Callable[[], object]) -> dict[str, float]:
    """One minus the cosine between what a block is given and what it answers, [N, length, features], on average.

    What hardly turns the stream can be left out with the least harm (Men et al. 2024, "ShortGPT", arXiv:2403.03853,
    section 3.1). Both have to be of one shape.

    Args:
        blocks: by name, each of which runs once.
        run: asks the network.
    """
    found = dict[str, float]()

    def watch(name: str) -> Callable[..., None]:
        def look(block: nn.Module, given: tuple[Any, ...], answer: Tensor) -> None:
            found[name] = 1.0 - float(torch.cosine_similarity(given[0], answer, dim=-1).double().mean())

        return look

    hooks = [block.register_forward_hook(watch(name)) for name, block in blocks.items()]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return found
