"""A model cut down as a whole: it sees fewer pixels, has fewer blocks, and answers as before in shape.

An answer for each pixel is interpolated back to the size that it had.

Resolution and depth are two of the three ways to scale a network (Tan and Le 2019, "EfficientNet", arXiv:1905.11946);
the third, width, is pruning's.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tasks.cut.coarse_layer import coarser, coarser_input
from tasks.cut.counted_places import fit_dense_layers, flattened_shapes
from tasks.cut.place_tables import grid_of, place_tables
from tasks.cut.residual_blocks import left_out, removable_blocks
from tasks.running.errors import CutRefused
from tasks.torch_models.model_blame import blame
from tasks.torch_models.model_structure import ModelCuts, apply_cuts


def cut_model(model: nn.Module, inputs: dict[str, Tensor], *, stride: int, depth: float) -> ModelCuts:
    """Cut the model in place; what stays keeps its weights, and BatchNorm the statistics of the whole model.

    Args:
        model: in eval mode; of no use any more if this raises.
        inputs: preprocessed inputs by name, at least two rows.
        stride: by how much coarser all layers but the first convolution see; 1: as they do.
        depth: share of the removable blocks that stay, 0 to 1; 1: all.

    Raises:
        CutRefused: no convolution can step further, no block can be left out, or the model that is left does not run
            or answers another shape.
    """
    shape = _answer(model, inputs).shape
    cuts = ModelCuts()
    if stride > 1:
        coarse = _coarse(model, inputs, shape, stride)
        apply_cuts(model, coarse)
        cuts = cuts.further(coarse)
    if depth < 1:
        gone = left_out(removable_blocks(model, inputs), depth, model=type(model).__name__)
        shallow = ModelCuts(removed=gone)
        apply_cuts(model, shallow)
        _check(model, inputs, shape, cut=f"the model without blocks {list(gone)}", remedy="Leave the depth at 1")
        cuts = cuts.further(shallow)
    return cuts


def _coarse(model: nn.Module, inputs: dict[str, Tensor], shape: torch.Size, stride: int) -> ModelCuts:
    """The first convolution steps further; where a shortcut leads past it, the model's input is averaged.

    Raises:
        CutRefused: the model runs after neither.
    """
    layer, flattened = coarser(model, inputs, stride), flattened_shapes(model, inputs)
    refusals: list[CutRefused] = []
    for cuts in (layer, coarser_input(model, layer)):
        trial = copy.deepcopy(model)
        before = grid_of(trial, inputs, layer.layers[0])
        apply_cuts(trial, cuts)
        places = ModelCuts(places=place_tables(trial, before, grid_of(trial, inputs, layer.layers[0])))
        apply_cuts(trial, places)
        places = places.further(fit_dense_layers(trial, inputs, flattened))
        try:
            larger = _check(
                trial,
                inputs,
                shape,
                cut=f"stride {stride} in layer {cuts.layers[0]!r}",
                remedy="Leave the stride at 1, or average over what is left of the space before the dense layers; the "
                "size of an answer for each pixel must be a multiple of the stride",
            )
            return cuts.further(places).further(larger)
        except CutRefused as refusal:
            refusals.append(refusal)
    raise refusals[0]


def _check(model: nn.Module, inputs: dict[str, Tensor], shape: torch.Size, *, cut: str, remedy: str) -> ModelCuts:
    """The cut model runs, and answers the same shape; what makes its answer as large as it was, where it takes that."""
    try:
        found = _answer(model, inputs).shape
    except Exception as error:  # whatever the user's forward() raises
        raise CutRefused(
            f"{cut}: {type(model).__name__} does not run any more: {blame(error, model)}{type(error).__name__}: "
            f"{error}. {remedy}"
        ) from error
    times = _times(shape, found)
    if times:
        larger = ModelCuts(enlarged=times)
        apply_cuts(model, larger)
        return larger
    if found != shape:
        raise CutRefused(
            f"{cut}: {type(model).__name__} would answer shape {list(found)} instead of {list(shape)}, and the shape "
            f"of the answer must stay. {remedy}"
        )
    return ModelCuts()


def _times(before: torch.Size, now: torch.Size) -> tuple[int, ...]:
    """How many times fewer places along each axis the answer [N, C, *space] has now; empty where that is no answer for
    each place, or no whole number of times."""
    if before == now or len(before) != len(now) or not 3 <= len(now) <= 5 or before[:2] != now[:2]:
        return ()
    times = tuple(a // b for a, b in zip(before[2:], now[2:], strict=True))
    return times if all(b * n == a for a, b, n in zip(before[2:], now[2:], times, strict=True)) else ()


def _answer(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        answer: Tensor = model(**inputs)
    return answer
