"""Dense layers that count places: a flattened grid of features holds fewer of them at a lower resolution."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tasks.torch_models.model_structure import CountedPlaces, ModelCuts, apply_cuts

Shapes = dict[str, tuple[int, ...]]
"""Of what was flattened for each dense layer, without the rows: [C, *space], or the like."""


class _Found(Exception):
    pass


class _Watch(TorchFunctionMode):
    """Remembers what was flattened last to rows of each length."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[int, tuple[int, ...]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        given = args[0] if args else None
        if isinstance(answer, Tensor) and isinstance(given, Tensor) and _is_flattened(given, answer):
            self.shapes[answer.shape[1]] = tuple(given.shape[1:])
        return answer


def _is_flattened(given: Tensor, answer: Tensor) -> bool:
    return answer.ndim == 2 < given.ndim and len(answer) == len(given) and answer.numel() == given.numel()


def flattened_shapes(model: nn.Module, inputs: dict[str, Tensor]) -> Shapes:
    """What was flattened for each dense layer of a model that runs, by its name."""
    return _look(model, inputs)[0]


def fit_dense_layers(model: nn.Module, inputs: dict[str, Tensor], whole: Shapes) -> ModelCuts:
    """Fit, in place, the dense layers of a model that was cut to what is flattened for them now.

    Args:
        whole: of the model before the cut. A layer whose features cannot be told apart there is left as it is.
    """
    cuts = ModelCuts()
    for _ in range(len(whole)):
        _, misfit = _look(model, inputs)
        name, after = misfit or ("", None)
        before = whole.get(name)
        if before is None or after is None or len(after) != len(before) or prod(after) >= prod(before):
            break
        further = ModelCuts(counted=(CountedPlaces(name=name, before=before, after=after),))
        apply_cuts(model, further)
        cuts = cuts.further(further)
    return cuts


def _look(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Shapes, tuple[str, tuple[int, ...] | None] | None]:
    """By dense layer, and the first one that is given rows of another length."""
    watch, found, misfits = _Watch(), Shapes(), list[tuple[str, tuple[int, ...] | None]]()
    names = {module: name for name, module in model.named_modules()}

    def look(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        given = arguments[0] if arguments else None
        if not isinstance(given, Tensor) or given.ndim != 2:
            return
        shape = watch.shapes.get(given.shape[1])
        if given.shape[1] != layer.in_features:
            misfits.append((names[layer], shape))
            raise _Found
        if shape is not None:
            found[names[layer]] = shape

    hooks = [m.register_forward_pre_hook(look) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        with torch.no_grad(), watch:
            model(**inputs)
    except _Found:
        pass
    except Exception:  # noqa: BLE001 - whoever checks the cut model says what it is
        return found, None
    finally:
        for hook in hooks:
            hook.remove()
    return found, misfits[0] if misfits else None
