"""Structured pruning: whole channels and units go, with everything that depends on them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tasks.running.errors import PruningRefused
from tasks.torch_models.channel_groups import ChannelGroup, channel_groups
from tasks.torch_models.channel_layout import by_blocks, find_layout, whole_blocks
from tasks.torch_models.channel_trial import without
from tasks.torch_models.model_blame import blame
from tasks.torch_models.pruning_plan import Plan, dependency_graph, traceable

Importance = Literal["magnitude", "taylor", "hessian"]
Scope = Literal["local", "global"]
PRUNABLE = (nn.modules.conv._ConvNd, nn.Linear)
_ROOTS = (*PRUNABLE, nn.RNNBase)
"""Whose outputs are removed. Recurrent layers: see tasks/torch_models/recurrent_units.py."""

_STATES = "its states are made or read outside of it"

_log = logging.getLogger("winnow.prune")
_ROUNDING = 1e-9
"""torch-pruning keeps ``int(width * (1 - ratio))`` channels: of 20 at 0.9 that is 1.9999999999999996, so 1."""


class ChannelPruner:
    """Prunes one model in place, in one or more steps.

    Args:
        model: the model; it keeps its class, its layers get narrower.
        inputs: preprocessed inputs by name, at least two rows, for tracing.
        ratio: share of the channels to remove in the end: of every group (local) or of all together (global).
        ratios: another share for the group of each layer named; the rest of the groups keep to ``ratio``.
        steps: number of calls of :meth:`step`, each of which removes an equal part of the ratio.
        importance: what ranks channels; before each step ``taylor`` needs gradients in the parameters, and ``hessian``
            (optimal brain damage, LeCun et al. 1989) means of squared gradients of single rows.
        round_to: channels kept are a multiple of this.
        ignore: names of modules whose outputs stay as wide as they are, besides those that the model itself names
            (``never_pruned``). The output layer always does.

    Raises:
        PruningRefused: the model cannot be traced, a module named does not exist, or there is nothing to prune.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        *,
        ratio: float,
        ratios: dict[str, float] | None = None,
        steps: int = 1,
        importance: Importance = "magnitude",
        scope: Scope = "local",
        round_to: int = 1,
        ignore: tuple[str, ...] = (),
    ) -> None:
        import torch_pruning

        from tasks.torch_models.recurrent_units import fixed_layers, recurrent_pruners, traced_as_one

        self.model = model
        self.inputs = inputs
        self.asked = "prune.ratios" if ratios else f"prune.ratio {ratio:g}"
        self.round_to = round_to
        self._answer = self._shape_of_answer()
        modules = dict(model.named_modules())
        ignore = (*ignore, *getattr(model, "never_pruned", ()))
        unknown = sorted(set(ignore) - set(modules))
        if unknown:
            raise PruningRefused(
                f"prune_hints() ignores {unknown}, which the model lacks; it has {sorted(modules)[1:]}"
            )
        graph = dependency_graph(model, inputs)
        reached = {m for m in graph.module2node if isinstance(m, _ROOTS)}
        self.untraced = tuple(n for n, m in modules.items() if isinstance(m, PRUNABLE) and m not in reached)
        self.outputs = tuple(name for name, m in modules.items() if m in _output_layers(graph))
        if not reached:
            raise PruningRefused(
                f"nothing to prune in model {type(model).__name__}: none of its layers {list(self.untraced)} was "
                f"reached by following autograd back from the output{_where_autograd_stops(model, inputs)}; keep the "
                "forward pass differentiable (no .detach(), no torch.no_grad())"
            )
        states = fixed_layers(model, inputs)
        fixed = {name: _STATES for name, module in modules.items() if module in states}
        kept = [modules[name] for name in {*ignore, *self.outputs, *fixed}]
        with traceable(model):
            layout = find_layout(graph, inputs, kept, _ROOTS)
        self.left_alone = fixed | layout.left_alone
        """Layers whose width forward() counts on, and what it says without a channel; or that keep a state."""
        kept += [modules[name] for name in self.left_alone]
        tied = _tied_layers(graph, kept)
        asked = self._per_group(ratios or {}, tied, modules)
        self._blocks = layout.blocks
        blocks = {modules[names[0]]: self._block_of(names, modules) for names in tied}
        asked = {first: ratio for first, size in blocks.items() if size > 1} | asked
        with traceable(model), traced_as_one(model), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self._pruner = torch_pruning.pruner.BasePruner(
                model,
                example_inputs=inputs,
                importance=by_blocks(_importance(importance), self._blocks),
                pruning_ratio=ratio - _ROUNDING,
                pruning_ratio_dict=asked,
                iterative_steps=steps,
                global_pruning=scope == "global",
                round_to=round_to if round_to > 1 else None,
                ignored_layers=kept,
                in_channel_groups={},  # its defaults are shared by all instances
                out_channel_groups=dict(layout.parts),
                num_heads={},
                customized_pruners=recurrent_pruners(model),
                root_module_types=list(_ROOTS),
            )
        for first, size in blocks.items():
            if size > 1:
                width, by_step = _width_of(first), self._pruner.pruning_ratio_dict
                by_step[first] = [whole_blocks(r, width, size) - _ROUNDING for r in by_step[first]]
        for warning in caught:
            _log.info("torch-pruning: %s", warning.message)
        self._emptied: list[str] = []
        self._watch_emptied()
        if not list(self._pruner.DG.get_all_groups(self._pruner.ignored_layers, self._pruner.root_module_types)):
            raise PruningRefused(
                f"nothing to prune in model {type(model).__name__}: every layer is the output layer "
                f"{list(self.outputs)}, ignored {list(ignore)} or tied to one of them{_list_of(self.left_alone)}"
            )

    def step(self) -> None:
        """Remove the next part of the channels.

        Raises:
            PruningRefused: a layer would be left without channels, nothing was removed, or the narrower model does
                not run or answers another shape.
        """
        before = self.widths()
        self._emptied.clear()
        with traceable(self.model):
            self._pruner.step()
        if self._emptied:
            names = ", ".join(f"{n!r} ({before[n]} channels)" for n in dict.fromkeys(self._emptied))
            rounding = f" with round_to {self.round_to}" if self.round_to > 1 else ""
            raise PruningRefused(
                f"{self.asked}{rounding} would leave no channel in {names}; lower the ratio"
                f"{' or round_to' if rounding else ''}, use scope local, or name the layer in prune_hints()['ignore']"
            )
        if self._pruner.current_step == self._pruner.iterative_steps and not self.plan:
            raise PruningRefused(
                f"{self.asked} removed nothing from layers of widths {before}; raise the ratio or lower round_to "
                f"({self.round_to})"
            )
        answer = self._shape_of_answer()
        if answer != self._answer:
            raise PruningRefused(
                f"pruning changed the model's answer from shape {self._answer} to {answer}; name the layer that makes "
                "it in prune_hints()['ignore']"
            )

    def groups(self) -> list[ChannelGroup]:
        """What can be pruned, in the order of the model, its channels ranked as they are now."""
        with traceable(self.model):
            return channel_groups(self._pruner, _ROOTS, self._blocks)

    @contextmanager
    def without(self, group: ChannelGroup, keep: int) -> Iterator[None]:
        """Inside the block, the model runs with only ``keep`` of the group's channels, the most important ones."""
        graph, root = self._pruner.DG, self.model.get_submodule(group.root)
        whole = graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, range(group.width))
        with without(graph, whole, group.removed(keep)):
            yield

    @property
    def plan(self) -> Plan:
        """What was removed so far."""
        return [(name, bool(out), [int(i) for i in indices]) for name, out, indices in self._pruner.pruning_history()]

    def widths(self) -> dict[str, int]:
        """Output channels or units of every convolution, linear and recurrent layer, by name."""
        return {name: _width_of(m) for name, m in self.model.named_modules() if isinstance(m, _ROOTS)}

    def _per_group(
        self, ratios: dict[str, float], groups: list[tuple[str, ...]], modules: dict[str, nn.Module]
    ) -> dict[nn.Module, float]:
        """The ratio of each group that has one of its own, by its first layer.

        Raises:
            PruningRefused: a name is of no group, or two layers of a group were given different ratios.
        """
        unknown = sorted(ratios.keys() - {name for group in groups for name in group})
        if unknown:
            tied = ", ".join(" = ".join(group) for group in groups)
            raise PruningRefused(
                f"prune.ratios names {unknown}, which cannot be pruned in model {type(self.model).__name__}; layers "
                f"that can (tied ones joined by =): {tied}"
            )
        found = {}
        for group in groups:
            given = {name: ratios[name] for name in group if name in ratios}
            if len(set(given.values())) > 1:
                raise PruningRefused(
                    f"prune.ratios gives {given} to layers that lose the same channels; give one ratio to one of them"
                )
            for ratio in set(given.values()):
                found[modules[group[0]]] = max(0.0, ratio - _ROUNDING)
        return found

    def _block_of(self, names: tuple[str, ...], modules: dict[str, nn.Module]) -> int:
        return max(self._blocks.get(modules[name], 1) for name in names)

    def _watch_emptied(self) -> None:
        """torch-pruning passes over a group that would end empty; we want to know."""
        graph = self._pruner.DG
        check = graph.check_pruning_group

        def watched(group: Any) -> bool:
            enough = bool(check(group))
            if not enough:
                self._emptied.append(graph._module2name[group[0].dep.target.module])
            return enough

        graph.check_pruning_group = watched

    def _shape_of_answer(self) -> tuple[int, ...]:
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                answer = self.model(**self.inputs)
        except Exception as error:
            raise PruningRefused(
                f"model {type(self.model).__name__} does not run{' any more' if hasattr(self, '_pruner') else ''}: "
                f"{blame(error, self.model)}{type(error).__name__}: {error}. Read sizes from tensors instead of fixing "
                "them in the code, or name the layers before it in prune_hints()['ignore']"
            ) from error
        finally:
            self.model.train(training)
        if not isinstance(answer, Tensor):
            raise PruningRefused(f"model {type(self.model).__name__} answers {type(answer).__name__}, not one tensor")
        return tuple(answer.shape)


def _width_of(layer: nn.Module) -> int:
    """Of a recurrent layer: the units of one direction."""
    attribute = {nn.Linear: "out_features", nn.RNNBase: "hidden_size"}
    name = next((name for kind, name in attribute.items() if isinstance(layer, kind)), "out_channels")
    return int(getattr(layer, name))


def _list_of(left_alone: dict[str, str]) -> str:
    return "".join(f"; layer {name!r} cannot be narrowed: {why}" for name, why in left_alone.items())


def _importance(name: Importance) -> Any:
    from torch_pruning.pruner import importance

    return {
        "magnitude": importance.GroupMagnitudeImportance,
        "taylor": importance.GroupTaylorImportance,
        # Its own accumulate_grad() forgets all rows but the last (1.6.1), so it gets finished means as gradients.
        "hessian": importance.GroupHessianImportance,
    }[name]()


def _output_layers(graph: Any) -> set[nn.Module]:
    """The layers whose output channels are channels of the model's answer."""
    from torch_pruning.ops import OPTYPE

    found: set[nn.Module] = set()
    for module in list(graph.module2node):
        if isinstance(module, _ROOTS):
            pruner = graph.get_pruner_of_module(module)
            group = graph.get_pruning_group(module, pruner.prune_out_channels, [0])
            reached = [dep.target for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)]
            if any(node.type == OPTYPE.OUTPUT or not node.outputs for node in reached):
                found.add(module)
    return found


def _tied_layers(graph: Any, kept: list[nn.Module]) -> list[tuple[str, ...]]:
    """The layers of each group that can be pruned, in the order of the model."""
    place = {name: number for number, (name, _) in enumerate(graph.model.named_modules())}
    ignored = [inner for module in kept for inner in module.modules()]
    groups = []
    for group in graph.get_all_groups(ignored, _ROOTS):
        names = {
            graph._module2name[dep.target.module]
            for dep, _ in group
            if isinstance(dep.target.module, _ROOTS) and graph.is_out_channel_pruning_fn(dep.handler)
        }
        groups.append(tuple(sorted(names, key=place.__getitem__)))
    return sorted(groups, key=lambda names: place[names[0]])


def _where_autograd_stops(model: nn.Module, inputs: dict[str, Tensor]) -> str:
    """Names the first module that had a differentiable input and answered without gradient."""
    stops: list[str] = []
    names = {m: name for name, m in model.named_modules()}

    def look(module: nn.Module, args: Any, kwargs: Any, answer: Any) -> None:
        given = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        if isinstance(answer, Tensor) and not answer.requires_grad and any(a.requires_grad for a in given):
            stops.append(names[module])

    hooks = [m.register_forward_hook(look, with_kwargs=True) for m in model.modules()]
    try:
        with torch.enable_grad():
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return f", which stops in module {stops[0]!r}" if stops else ""
