"""Blocks that a model still works without: those that add something to their input.

Residual blocks can be left out with little harm, for what they add to is passed on (Veit et al. 2016, arXiv:1605.06431,
section 4.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from tasks.running.errors import CutRefused


@dataclass
class _Call:
    """What a module was given and answered, in a pass that ran it once."""

    arguments: tuple[Any, ...]
    named: dict[str, Any]
    answer: Any
    times: int = 1


def removable_blocks(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[str, ...]:
    """Names of the blocks that can be left out, in the order of the model.

    A block has several layers with parameters, is a child of a Sequential or ModuleList, runs once per pass, answers a
    tensor of the shape of its first argument, and passes that on beside its weights (see :func:`_passes_on`). Blocks of
    one class and shape that follow each other are a stage; its first block always stays. Of blocks within blocks the
    outermost count.

    Args:
        model: in eval mode; left as it is.
        inputs: preprocessed inputs by name.
    """
    calls = _observed(model, inputs)
    found: set[str] = set()
    settled: list[str] = []
    for name, container in model.named_modules():
        if not isinstance(container, nn.Sequential | nn.ModuleList) or any(name.startswith(s) for s in settled):
            continue
        prefix = f"{name}." if name else ""
        children = [(prefix + n, m) for n, m in container.named_children() if _holds_parameters(m)]
        for key, members in groupby(children, key=lambda child: _stage(child[1], calls)):
            stage = list(members)
            blocks = [n for n, m in stage[1:] if key is not None and _passes_on(m, calls[m])]
            if blocks:
                found.update(blocks)
                settled += [f"{n}." for n, _ in stage]
    return tuple(name for name, _ in model.named_modules() if name in found)


def left_out(blocks: Sequence[str], depth: float, *, model: str = "the model") -> tuple[str, ...]:
    """Those of the removable blocks that go, spread evenly, so that a share of ``depth`` stays.

    So DistilBERT takes every second layer (Sanh et al. 2019, arXiv:1910.01108, section 3), and LayerDrop prunes every
    other one (Fan et al. 2020, arXiv:1909.11556, section 3.2).

    Raises:
        CutRefused: there are none, or the share is so large that all stay.
    """
    if not blocks:
        raise CutRefused(
            f"{model} has no block that can be left out; leave the depth at 1. It takes blocks that add to their input "
            "and answer its shape, several of a class in a row in a Sequential or ModuleList"
        )
    count = len(blocks)
    gone = math.floor((1 - depth) * count + 0.5)
    if gone == 0:
        raise CutRefused(
            f"a depth of {depth:g} leaves out none of the {count} removable blocks of {model}; "
            f"set it to {1 - 1 / count:.3g} or less"
        )
    # Bresenham's line: the n-th goes where its rounded share of those that go rises.
    share = [(2 * place * gone + count) // (2 * count) for place in range(count + 1)]
    return tuple(block for block, before, after in zip(blocks, share, share[1:], strict=False) if after > before)


def _stage(module: nn.Module, calls: dict[nn.Module, _Call]) -> tuple[type[nn.Module], torch.Size] | None:
    """What the blocks of a stage have in common; None for what is no block."""
    call = calls.get(module)
    layers = sum(_holds_parameters(m, recurse=False) for m in module.modules())
    plain = type(module).forward is nn.Sequential.forward  # its children may be blocks
    if call is None or call.times != 1 or layers < 2 or plain or not isinstance(call.answer, Tensor):
        return None
    return type(module), call.answer.shape


def _passes_on(block: nn.Module, call: _Call) -> bool:
    """Whether the block answers the shape of its first argument, and that reaches the answer past all weights.

    Gradients tell: every layer with a weight matrix is cut off from its input, norms and scales are not.
    """
    given = call.arguments[0] if call.arguments else None
    if not isinstance(given, Tensor) or given.shape != call.answer.shape or not given.is_floating_point():
        return False
    hooks = [m.register_forward_hook(_cut_off) for m in block.modules() if m is not block and _has_matrix(m)]
    try:
        with torch.enable_grad():
            source = given.detach().requires_grad_()
            # A copy: what works in place must not work on the source itself.
            answer = block(source.clone(), *call.arguments[1:], **call.named)
            if not answer.requires_grad:
                return False
            (gradient,) = torch.autograd.grad(answer.sum(), source, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    return gradient is not None


def _holds_parameters(module: nn.Module, *, recurse: bool = True) -> bool:
    return next(module.parameters(recurse), None) is not None


def _has_matrix(module: nn.Module) -> bool:
    """Whether it mixes channels or places: convolutions, dense layers, attention; not norms, nor scales by channel."""
    if isinstance(module, nn.LayerNorm):
        return False
    own = list(module.parameters(recurse=False))
    if not any(True for _ in module.children()):
        return any(p.ndim > 1 for p in own)
    return any(sum(size > 1 for size in p.shape) > 1 for p in own)


def _cut_off(module: nn.Module, arguments: Any, answer: Any) -> Any:
    if isinstance(answer, Tensor):
        return answer.detach()
    return tuple(a.detach() if isinstance(a, Tensor) else a for a in answer) if isinstance(answer, tuple) else answer


def _observed(model: nn.Module, inputs: dict[str, Tensor]) -> dict[nn.Module, _Call]:
    """What each child of a Sequential or ModuleList was given and answered."""
    calls: dict[nn.Module, _Call] = {}

    def look(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], answer: Any) -> None:
        times = calls[module].times + 1 if module in calls else 1
        calls[module] = _Call(arguments, named, answer, times)

    children = {m for c in model.modules() if isinstance(c, nn.Sequential | nn.ModuleList) for m in c.children()}
    hooks = [m.register_forward_hook(look, with_kwargs=True) for m in children]
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return calls
