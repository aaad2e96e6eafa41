"""Learned positions of patches: a coarser grid takes theirs from between those of the finer one.

So vision transformers are brought to other resolutions (Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.2).
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tasks.torch_models.model_structure import PlaceTable

_MOST_PREFIXED = 2
"""Tokens before those of the patches: one for the class, one more for distillation (Touvron et al. 2021)."""


class _Found(Exception):
    def __init__(self, grid: tuple[int, ...]) -> None:
        self.grid = grid


def grid_of(model: nn.Module, inputs: dict[str, Tensor], layer: str) -> tuple[int, ...]:
    """How many places along each spatial axis the convolution answers; what is behind it is not run, and may misfit."""

    def look(convolution: nn.Module, arguments: Any, answer: Tensor) -> None:
        raise _Found(tuple(answer.shape[2:]))

    hook = model.get_submodule(layer).register_forward_hook(look)
    try:
        with torch.no_grad():
            model(**inputs)
    except _Found as found:
        return found.grid
    finally:
        hook.remove()
    raise AssertionError(f"layer {layer!r} was run before and is not any more")


def place_tables(model: nn.Module, before: tuple[int, ...], after: tuple[int, ...]) -> tuple[PlaceTable, ...]:
    """The model's own parameters with a row for each place of the grid ``before``, to be brought to ``after``.

    Weights of torch's layers are none of them: a dense layer over places has learned what no other grid has.
    """
    found = []
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        if type(owner).__module__.startswith("torch.nn.") or parameter.ndim < 2:
            continue
        shape = tuple(parameter.shape)
        if len(before) > 1 and shape[-len(before) :] == before:
            axis, prefix, spread = parameter.ndim - len(before), 0, True
        elif len(before) > 1 and shape[-len(before) - 1 : -1] == before:
            axis, prefix, spread = parameter.ndim - len(before) - 1, 0, True
        elif prod(before) > 1 and 0 <= shape[-2] - prod(before) <= _MOST_PREFIXED:
            axis, prefix, spread = parameter.ndim - 2, shape[-2] - prod(before), False
        else:
            continue
        found.append(PlaceTable(name=name, axis=axis, prefix=prefix, spread=spread, before=before, after=after))
    return tuple(found)
