"""Rows that are made of others, which a teacher can be asked about where a workload has no augmentation of its own.

They keep a long training from learning a small split by heart. Images are moved a little; of other numbers two rows are
mixed, which have no label, but a student learns from the teacher's answers whatever they are of. Source: Zhang et al.
2018, "mixup" (arXiv:1710.09412); Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and consistent"
(arXiv:2106.05237), section 4.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from tasks.workloads.workload import Inputs, Workload, row_filling

_IMAGES, _SMALLEST = 4, 28
"""Dimensions of images; height and width from which they are moved, by a pixel for each time that it fits in."""
_TABLE = 2
_IMAGE = 3
"""Dimensions from which whole numbers of one byte are brightnesses, [N, height, width] and up; below they are codes."""


def movable(inputs: Inputs) -> bool:
    """Whether images are among these inputs, [N, channels, height, width], that are large enough to be moved."""
    return any(map(_is_image, inputs.values()))


def moved(inputs: Inputs, generator: torch.Generator) -> Inputs:
    """Images moved by whole pixels, at most one of 28 in each direction, all inputs of a row alike as far as their
    sizes are; what comes in is what was at the edge."""
    rows = len(next(iter(inputs.values())))
    ways = torch.rand(rows, 2, generator=generator)
    return {name: _moved(value, ways) if _is_image(value) else value for name, value in inputs.items()}


def codes_among(inputs: Inputs) -> dict[str, Tensor]:
    """Of inputs that are tables of numbers, [N, columns]: in which columns all of these rows hold whole numbers, or
    nothing; bool [columns]. They may be codes, between which there is nothing."""
    tables = {name: values for name, values in inputs.items() if values.is_floating_point() and values.ndim == _TABLE}
    return {name: ((values == values.round()) | values.isnan()).all(dim=0) for name, values in tables.items()}


def mixable(workload: Workload, inputs: Inputs) -> bool:
    """Whether there is anything between two of these rows, [N, ...] before preprocessing: numbers that are no codes,
    and no rows of different lengths."""
    if row_filling(workload):
        return False
    codes = codes_among(inputs)
    return any(_continuous(v) and not (name in codes and codes[name].all()) for name, v in inputs.items())


def mixed(inputs: Inputs, generator: torch.Generator, codes: Mapping[str, Tensor]) -> Inputs:
    """Each row with another one of these, at random shares that are the same for all inputs; codes stay the first's.

    A value that is missing (NaN) in the other row stays as it is.

    Args:
        codes: as :func:`codes_among` all rows of the split.
    """
    rows = len(next(iter(inputs.values())))
    others, shares = torch.randperm(rows, generator=generator), torch.rand(rows, generator=generator)
    found = {name: _between(v, v[others], shares) if _continuous(v) else v for name, v in inputs.items()}
    return {name: torch.where(codes[name], inputs[name], v) if name in codes else v for name, v in found.items()}


def _is_image(values: Tensor) -> bool:
    return values.ndim == _IMAGES and _continuous(values) and min(values.shape[2:]) >= _SMALLEST


def _moved(images: Tensor, ways: Tensor) -> Tensor:
    """By shares ``ways`` [N, 2] of the way from one end to the other."""
    height, width = images.shape[2:]
    most = [max(1, size // _SMALLEST) for size in (height, width)]
    padded = functional.pad(images.float(), (most[1], most[1], most[0], most[0]), mode="replicate")
    down, right = ((ways[:, i] * (2 * most[i] + 1)).long() for i in (0, 1))
    grid = torch.arange(height) + down[:, None], torch.arange(width) + right[:, None]
    numbers = torch.arange(len(images))[:, None, None]
    found = padded[numbers, :, grid[0][:, :, None], grid[1][:, None, :]]
    return found.permute(0, 3, 1, 2).contiguous().to(images.dtype)


def _continuous(values: Tensor) -> bool:
    return values.is_floating_point() or (values.dtype is torch.uint8 and values.ndim >= _IMAGE)


def _between(one: Tensor, other: Tensor, shares: Tensor) -> Tensor:
    share = shares.reshape(-1, *[1] * (one.ndim - 1))
    found = share * one.float() + (1 - share) * other.float()
    if one.dtype is torch.uint8:
        return found.round().to(torch.uint8)
    return torch.where(found.isnan(), one, found.to(one.dtype))
