"""The layer that decides how many pixels all others see: the first convolution over space."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tasks.running.errors import CutRefused
from tasks.torch_models.model_structure import ModelCuts

_SPATIAL = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_Spatial = nn.Conv1d | nn.Conv2d | nn.Conv3d


def coarser(model: nn.Module, inputs: dict[str, Tensor], factor: int) -> ModelCuts:
    """The cut after which the first convolution with a kernel above 1 answers ``factor`` times fewer pixels per axis.

    It steps further, as long as its kernel still reads every pixel. Where it would skip some (3x3 stems that step by
    2 already, stems that cut the image into patches), the mean of each ``factor`` pixels per axis is what it sees; so
    too where its padding is ``same`` and wider on one side, which torch has for steps of 1 only. Convolutions of 1x1
    are passed over, and so are axes along which the kernel is 1 wide.

    Args:
        model: in eval mode; left as it is.
        inputs: preprocessed inputs by name.

    Raises:
        CutRefused: the model runs no such convolution.
    """
    name, layer, size = _first(model, inputs)
    factors = tuple(factor if size > 1 else 1 for size in layer.kernel_size)
    stride = tuple(step * times for step, times in zip(layer.stride, factors, strict=True))
    skips = any(step > size for step, size in zip(stride, layer.kernel_size, strict=True))
    if skips or (layer.padding == "same" and _is_uneven(layer)):
        padding = _to_whole_patches(layer, size, factors)
        return ModelCuts(averaged=((name, factors),), padded={name: padding} if any(padding) else {})
    return ModelCuts(strides={name: stride})


def _to_whole_patches(layer: _Spatial, size: tuple[int, ...], factors: tuple[int, ...]) -> tuple[int, ...]:
    """Pixels to add along each axis, so that patches cover all of it: of 28 pixels 3 coarse patches of 8 see 24."""
    if layer.stride != layer.kernel_size or any(layer.padding):
        return tuple(0 for _ in size)
    return tuple(-of % (step * times) for of, step, times in zip(size, layer.stride, factors, strict=True))


def coarser_input(model: nn.Module, coarse: ModelCuts) -> ModelCuts:
    """The cut that averages the model's own input as far as ``coarse`` makes the first convolution step further.

    For convolutions inside a block with a shortcut, whose two branches have to answer the same size (temporal
    convolutional networks begin with one).
    """
    layers = dict(model.named_modules())
    averaged = dict(coarse.averaged)
    for name, stride in coarse.strides.items():
        before = layers[name].stride
        averaged[name] = tuple(new // old for new, old in zip(stride, before, strict=True))
    return ModelCuts(averaged=tuple(("", factors) for factors in averaged.values()))


def _is_uneven(layer: _Spatial) -> bool:
    return any((size - 1) * gap % 2 for size, gap in zip(layer.kernel_size, layer.dilation, strict=True))


def _first(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[str, _Spatial, tuple[int, ...]]:
    found: list[tuple[str, _Spatial, tuple[int, ...]]] = []
    names = {module: name for name, module in model.named_modules()}

    def look(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if isinstance(module, _SPATIAL) and max(module.kernel_size) > 1:
            found.append((names[module], module, tuple(arguments[0].shape[2:])))

    hooks = [m.register_forward_pre_hook(look) for m in names if isinstance(m, _SPATIAL)]
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise CutRefused(
            f"{type(model).__name__} runs no convolution with a kernel above 1, so there is no resolution to lower; "
            "leave the stride at 1"
        )
    return found[0]
