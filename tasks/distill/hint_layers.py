"""Which layers of student and teacher belong together where the spec leaves that to us."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tasks.distill.hints import features_last
from tasks.running.errors import SpecError
from tasks.torch_models.fit_rows import call_model

_PARTS = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q", "k", "v"))
"""What an attention calls its queries, keys and values."""
Resolution = tuple[int, ...]
"""Sizes of the positions of a feature map: (height, width) of images, () of a dense layer."""


def matching_layers(teacher: nn.Module, student: nn.Module, inputs: dict[str, Tensor]) -> list[tuple[str, str]]:
    """For every resolution that both models have: the last module of each before the resolution changes.

    Modules are taken in the order in which they finish, so that a stage counts and not its last layer. Not looked at
    are modules inside a block that changes the resolution once (its widened inner layers are no features of that
    resolution's stage), and modules whose output is the model's answer.

    Args:
        inputs: preprocessed rows for one forward pass of each model.

    Raises:
        SpecError: no resolution is found in both.
    """
    theirs, ours = last_modules(teacher, inputs), last_modules(student, inputs)
    pairs = [(theirs[resolution], ours[resolution]) for resolution in theirs if resolution in ours]
    if not pairs:
        raise SpecError(
            "distill.hints.layers auto finds no layers of equal resolution: the teacher has "
            f"{_listed(theirs)}, the student {_listed(ours)}; give pairs [teacher module, student module]"
        )
    return pairs


def attention_layers(teacher: nn.Module, student: nn.Module) -> list[tuple[str, str]]:
    """Queries, keys and values of the last attention of each model; none where the student has no attention.

    Raises:
        SpecError: the teacher has no module with parts of those names.
    """
    theirs, ours = _last_attention(teacher), _last_attention(student)
    if not theirs:
        wanted = " or ".join(", ".join(names) for names in _PARTS)
        raise SpecError(
            f"distill.hints of attention finds none in the teacher {type(teacher).__name__}: no module has the parts "
            f"{wanted}; give distill.hints.layers, pairs [teacher module, student module]"
        )
    return list(zip(theirs, ours, strict=True)) if ours else []


def _last_attention(model: nn.Module) -> tuple[str, ...]:
    """Names of the three; empty where there are none."""
    found: tuple[str, ...] = ()
    for name, module in model.named_modules():
        parts = {part for part, _ in module.named_children()}
        for names in _PARTS:
            if parts.issuperset(names):
                found = tuple(f"{name}.{part}".removeprefix(".") for part in names)
    return found


def last_modules(model: nn.Module, inputs: dict[str, Tensor]) -> dict[Resolution, str]:
    """By resolution, in the order of the forward pass: the last module with features of it."""
    finished: list[tuple[str, Resolution | None, Resolution]] = []
    outputs: dict[str, Tensor] = {}
    names = {module: name for name, module in model.named_modules()}
    last = features_last(model)

    def look(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim >= 2:
            given = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.ndim >= 2]
            finished.append((names[module], _resolution(given[0], last) if given else None, _resolution(output, last)))
            outputs[names[module]] = output

    hooks = [module.register_forward_hook(look, with_kwargs=True) for module in names]
    try:
        with torch.no_grad():
            answer = call_model(model.eval(), inputs)
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[Resolution, str] = {}
    blocks = tuple(name + "." for name, before, after in finished if name and _is_step(name, before, after, finished))
    for name, _, resolution in finished:
        if name and not name.startswith(blocks) and outputs[name] is not answer:
            found[resolution] = name
    return found


def _is_step(
    name: str, before: Resolution | None, after: Resolution, finished: list[tuple[str, Resolution | None, Resolution]]
) -> bool:
    """Whether the module leads from one resolution to one other, with no third in between."""
    inside = {resolution for other, _, resolution in finished if other.startswith(name + ".")}
    return before is not None and before != after and inside <= {before, after}


def _resolution(features: Tensor, last: bool) -> Resolution:
    if features.ndim == 3 and last:
        return (features.shape[1],)
    return tuple(features.shape[2:])


def _listed(found: dict[Resolution, str]) -> str:
    return ", ".join(f"{name} ({'x'.join(map(str, size)) or 'dense'})" for size, name in found.items()) or "none"
