"""How a module is made again before its tensors are loaded: the workload's arguments, what was cut, what was pruned."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from model_registry.variant import Frozen
from tasks.running.errors import CutRefused
from tasks.torch_models.pruning_plan import Plan


class PlaceTable(Frozen):
    """A parameter with an entry for each place of a grid, and the grid that it is brought to.

    ``axis``: its first dimension that counts places: as many dimensions as the grid has (``spread``), or one for all
    of them, after ``prefix`` entries that belong to no place.
    """

    name: str
    axis: int
    prefix: int
    spread: bool
    before: tuple[int, ...]
    after: tuple[int, ...]


class CountedPlaces(Frozen):
    """A dense layer whose inputs are a flattened grid [C, *space], and the smaller grid that it is brought to."""

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]


class ModelCuts(Frozen):
    """What was taken out of the workload's model as a whole, with every other weight as it was."""

    strides: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """Convolutions by name that step further than the workload's, and their stride along each spatial axis."""
    averaged: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Names of convolutions whose input is averaged first, and the window along each spatial axis; the name '' is the
    model itself."""
    padded: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """Of those: pixels added along each spatial axis first, as many as make whole patches."""
    places: tuple[PlaceTable, ...] = ()
    """Parameters with an entry for each place, which are interpolated."""
    counted: tuple[CountedPlaces, ...] = ()
    """Dense layers with inputs for each place, which are given fewer."""
    removed: tuple[str, ...] = ()
    """Names of blocks that pass their input on."""
    enlarged: tuple[int, ...] = ()
    """How many times larger the answer is made along each spatial axis, of a model with an answer for each place."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the convolutions that lower the resolution, or ``input`` where the model's own is averaged."""
        return tuple(dict.fromkeys([*self.strides, *(name or "input" for name, _ in self.averaged)]))

    def further(self, later: ModelCuts) -> ModelCuts:
        """These cuts and then those."""
        return ModelCuts(
            strides=self.strides | later.strides,
            averaged=self.averaged + later.averaged,
            padded=self.padded | later.padded,
            places=self.places + later.places,
            counted=self.counted + later.counted,
            removed=self.removed + later.removed,
            enlarged=_product(self.enlarged, later.enlarged),
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

    A hook, not a module around the layer, so that the layer's weights keep their names. The pixels at the edge are
    repeated to make ``padding`` more along each axis, half of them on either side.
    """

    def __init__(self, window: tuple[int, ...], padding: tuple[int, ...] = ()) -> None:
        self.window = window
        # Of the last axis first, before and after.
        self.padding = tuple(side for extra in reversed(padding) for side in (extra // 2, extra - extra // 2))

    def __call__(self, layer: nn.Module, arguments: tuple[Tensor, ...]) -> Tensor:
        pool = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[len(self.window)]
        image = functional.pad(arguments[0], self.padding, mode="replicate") if any(self.padding) else arguments[0]
        return pool(image, self.window)


class EnlargedAnswer:
    """A forward hook: the model's answer [N, C, *space] is interpolated to ``times`` as many places along each axis.

    A hook for the reason that :class:`AveragedInput` gives.
    """

    def __init__(self, times: tuple[int, ...]) -> None:
        self.times = times

    def __call__(self, model: nn.Module, arguments: Any, answer: Tensor) -> Tensor:
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(self.times)]
        factors = [float(n) for n in self.times]
        return functional.interpolate(answer, scale_factor=factors, mode=mode, align_corners=False)


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
        _convolution(model, name, window).register_forward_pre_hook(AveragedInput(window, cuts.padded.get(name, ())))
    for table in cuts.places:
        _interpolate(model, table)
    for layer in cuts.counted:
        _sum_places(model, layer)
    for name in cuts.removed:
        if name not in modules:
            raise _misfit(model, f"block {name!r} is to pass its input on and is not there")
        parent, _, last = name.rpartition(".")
        modules[parent].register_module(last, PassOn())
    if cuts.enlarged:
        model.register_forward_hook(EnlargedAnswer(cuts.enlarged))


def _product(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    if not first or not second:
        return first or second
    return tuple(a * b for a, b in zip(first, second, strict=True))


def _convolution(model: nn.Module, name: str, steps: tuple[int, ...]) -> _ConvNd:
    layer = dict(model.named_modules()).get(name)
    if not isinstance(layer, _ConvNd) or len(layer.stride) != len(steps):
        kind = "not there" if layer is None else f"a {type(layer).__name__}"
        raise _misfit(model, f"layer {name!r} is to step by {steps} and is {kind}")
    return layer


def _interpolate(model: nn.Module, table: PlaceTable) -> None:
    """Bring a table of places to another grid, smoothly: each new place is a mean of those around it."""
    owner, name = _owner(model, table.name)
    whole: Tensor | None = getattr(owner, name, None)
    places = len(table.before) if table.spread else 1
    counted = table.before if table.spread else (table.prefix + prod(table.before),)
    if not isinstance(whole, nn.Parameter) or tuple(whole.shape[table.axis : table.axis + places]) != counted:
        raise _misfit(model, f"parameter {table.name!r} is to have entries for {list(table.before)} places and has not")
    prefix = whole.detach().narrow(table.axis, 0, table.prefix)
    rest = whole.detach().narrow(table.axis, table.prefix, whole.shape[table.axis] - table.prefix)
    lead, tail = rest.shape[: table.axis], rest.shape[table.axis + places :]
    grid = rest.reshape(prod(lead), *table.before, prod(tail)).movedim(-1, 1)
    mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(table.before)]
    fine = functional.interpolate(grid, size=table.after, mode=mode, antialias=mode == "bicubic")
    after = table.after if table.spread else (prod(table.after),)
    coarse = fine.movedim(1, -1).reshape(*lead, *after, *tail)
    joined = torch.cat([prefix, coarse], dim=table.axis) if table.prefix else coarse
    owner.register_parameter(name, nn.Parameter(joined, requires_grad=whole.requires_grad))


def _sum_places(model: nn.Module, counted: CountedPlaces) -> None:
    """Each place of the smaller grid stands for several of the larger one: it has the sum of their weights."""
    layer = dict(model.named_modules()).get(counted.name)
    if not isinstance(layer, nn.Linear) or layer.in_features != prod(counted.before):
        raise _misfit(model, f"dense layer {counted.name!r} is to take {prod(counted.before)} inputs and does not")
    weight = layer.weight.detach().reshape(-1, *counted.before)
    for axis, (many, few) in enumerate(zip(counted.before, counted.after, strict=True), 1):
        if many != few:
            nearest = torch.arange(many, device=weight.device) * few // many
            shape = (*weight.shape[:axis], few, *weight.shape[axis + 1 :])
            weight = weight.new_zeros(shape).index_add_(axis, nearest, weight)
    layer.weight = nn.Parameter(weight.flatten(1), requires_grad=layer.weight.requires_grad)
    layer.in_features = weight[0].numel()


def _owner(model: nn.Module, parameter: str) -> tuple[nn.Module, str]:
    parent, _, last = parameter.rpartition(".")
    return dict(model.named_modules()).get(parent, model), last


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
