"""How a module is made again before its tensors are loaded: the workload's arguments, what was cut, what was pruned."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from model_registry.variant import Frozen
from tasks.running.errors import CutRefused
from tasks.torch_models.pruning_plan import Plan


class ModelCuts(Frozen):
    """What was taken out of the workload's model as a whole, with every other weight as it was."""

    strides: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """Convolutions by name that step further than the workload's, and their stride along each spatial axis."""
    averaged: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Names of convolutions whose input is averaged first, and the window along each spatial axis; the name '' is the
    model itself."""
    removed: tuple[str, ...] = ()
    """Names of blocks that pass their input on."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the convolutions that lower the resolution, or ``input`` where the model's own is averaged."""
        return tuple(dict.fromkeys([*self.strides, *(name or "input" for name, _ in self.averaged)]))

    def further(self, later: ModelCuts) -> ModelCuts:
        """These cuts and then those."""
        return ModelCuts(
            strides=self.strides | later.strides,
            averaged=self.averaged + later.averaged,
            removed=self.removed + later.removed,
        )


class ModelStructure(Frozen):
    """What to build, in this order: the workload's ``model(role, **scale)``, the cuts, the pruning plan.

    One value, handed on whole by whoever saves a child of a model: nobody can leave a part of it out.
    """

    role: str
    scale: dict[str, Any] = Field(default_factory=dict)
    cuts: ModelCuts = ModelCuts()
    pruning: Plan | None = None
    """Channels removed from the model that was cut, see tasks/torch_models/pruning_plan.py."""

    def narrowed(self, plan: Plan) -> ModelStructure:
        """This structure without the channels that the plan lists, in the numbering of the model as it is."""
        return self.model_copy(update={"pruning": [*(self.pruning or []), *plan] or None})

    def cut_further(self, cuts: ModelCuts) -> ModelStructure:
        """This structure with these cuts too.

        Raises:
            CutRefused: it was pruned already; the plan counts channels of layers that might go.
        """
        if self.pruning:
            raise CutRefused(
                f"a model that was pruned ({len(self.pruning)} entries in its plan) cannot be cut: blocks and strides "
                "go before channels; cut the model that it was pruned from, then prune that"
            )
        return self.model_copy(update={"cuts": self.cuts.further(cuts)})


class AveragedInput:
    """A forward pre-hook: the layer sees the mean of each window [*window] of its input [N, C, *space].

    A hook, not a module around the layer, so that the layer's weights keep their names.
    """

    def __init__(self, window: tuple[int, ...]) -> None:
        self.window = window

    def __call__(self, layer: nn.Module, arguments: tuple[Tensor, ...]) -> Tensor:
        pool = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[len(self.window)]
        return pool(arguments[0], self.window)


class AveragedInputs:
    """The same for a model that is called with its inputs by name: those [N, C, *space] in floating point."""

    def __init__(self, window: tuple[int, ...]) -> None:
        self.window, self._average = window, AveragedInput(window)

    def __call__(
        self, model: nn.Module, arguments: tuple[Any, ...], inputs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return arguments, {name: self._averaged(model, value) for name, value in inputs.items()}

    def _averaged(self, model: nn.Module, value: Any) -> Any:
        fits = isinstance(value, Tensor) and value.is_floating_point() and value.ndim == len(self.window) + 2
        return self._average(model, (value,)) if fits else value


class PassOn(nn.Module):
    """Stands where a block stood, and answers the first thing that it is given; of masks and the like it takes no
    notice (``nn.Identity`` would not accept them)."""

    def forward(self, hidden: Any, *others: Any, **named: Any) -> Any:
        return hidden


def apply_cuts(model: nn.Module, cuts: ModelCuts) -> None:
    """Cut a fresh model in place. Weights that stay keep their names and values.

    Raises:
        CutRefused: the cuts name what the model does not have.
    """
    modules = dict(model.named_modules())
    for name, stride in cuts.strides.items():
        _set_stride(_convolution(model, name, stride), stride)
    for name, window in cuts.averaged:
        if not name:
            model.register_forward_pre_hook(AveragedInputs(window), with_kwargs=True)
            continue
        _convolution(model, name, window).register_forward_pre_hook(AveragedInput(window))
    for name in cuts.removed:
        if name not in modules:
            raise _misfit(model, f"block {name!r} is to pass its input on and is not there")
        parent, _, last = name.rpartition(".")
        modules[parent].register_module(last, PassOn())


def _convolution(model: nn.Module, name: str, steps: tuple[int, ...]) -> _ConvNd:
    layer = dict(model.named_modules()).get(name)
    if not isinstance(layer, _ConvNd) or len(layer.stride) != len(steps):
        kind = "not there" if layer is None else f"a {type(layer).__name__}"
        raise _misfit(model, f"layer {name!r} is to step by {steps} and is {kind}")
    return layer


def _set_stride(layer: _ConvNd, stride: tuple[int, ...]) -> None:
    """Let a convolution step further, with the padding that it had: torch has no ``same`` for strides above 1."""
    if layer.padding == "same":
        pairs = zip(layer.kernel_size, layer.dilation, strict=True)
        layer.padding = tuple((size - 1) * dilation // 2 for size, dilation in pairs)
    layer.stride = stride


def _misfit(model: nn.Module, how: str) -> CutRefused:
    return CutRefused(
        f"the cuts do not fit model {type(model).__name__}: {how}; they were made for another version of the code: "
        "cut again"
    )
