"""A model as it would be without some channels, for as long as somebody looks at it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def without(graph: Any, group: Any, gone: Collection[int]) -> Iterator[None]:
    """Inside the block, the graph's model runs without the channels ``gone`` of the group.

    It is narrowed by the functions that pruning uses, so that every kind of layer is as it would be; afterwards all of
    it is as it was, and the graph has noticed nothing.

    Args:
        graph: torch-pruning's dependency graph; its ``model`` is what changes.
        group: one of the graph's, with all of its channels.
        gone: numbers of the group's channels.
    """
    saved: list[tuple[nn.Module, dict[str, Any], dict[str, Any], dict[str, Any]]] = []
    layers = set(graph.model.modules())  # other modules of the graph stand for operations
    try:
        for number, (dependency, indices) in enumerate(group):
            roots = group[number].root_idxs
            taken = [int(i) for i, root in zip(indices, roots, strict=True) if int(root) in gone]
            target = dependency.target.module
            if isinstance(target, nn.Parameter):
                owner, name = _owner(graph.model, graph._param_to_name[target])
                saved += _state(owner)
                owner.register_parameter(name, dependency(taken))
            elif target in layers:
                saved += _state(target)
                dependency(taken)
        yield
    finally:
        for module, attributes, parameters, buffers in reversed(saved):
            module.__dict__.clear()
            module.__dict__.update(attributes)
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    parent, _, last = name.rpartition(".")
    return model.get_submodule(parent), last


def _state(module: nn.Module) -> list[tuple[nn.Module, dict[str, Any], dict[str, Any], dict[str, Any]]]:
    return [(m, _copied(m.__dict__), dict(m._parameters), dict(m._buffers)) for m in module.modules()]


def _copied(attributes: dict[str, Any]) -> dict[str, Any]:
    """Lists too: recurrent layers keep one of their weights."""
    return {name: list(value) if type(value) is list else value for name, value in attributes.items()}
