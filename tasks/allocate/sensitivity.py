"""What each channel group is worth: the damage to the model's answers when only it is narrowed, before any tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tasks.torch_models.channel_groups import ChannelGroup, Member
from tasks.torch_models.channel_pruner import PRUNABLE
from tasks.torch_models.fit_rows import Rows
from tasks.torch_models.objective import soft_target_loss
from tasks.torch_models.recurrent_units import input_weights, unit_rows

Damages = dict[str, list[tuple[int, float]]]
"""By group: channels left and the damage, from wide to narrow."""

_BATCH = 64
"""Rows answered at a time, as much as fits a CPU's caches."""
_TEMPERATURE = 2.0
_NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)


def measure_damage(
    model: nn.Module,
    rows: Rows,
    groups: list[ChannelGroup],
    keeps: Mapping[str, list[int]],
    *,
    classification: bool,
    progress: Callable[[float, str], None],
) -> Damages:
    """Narrow one group at a time to each of ``keeps`` and compare the answers with those of the whole model.

    Nothing is copied or rebuilt: channels are set to 0 where they are made and where they are read, which for the
    answer is the same as removing them (but for GroupNorm and LayerNorm, which see the zeros), and put back. BatchNorm
    uses the statistics of each batch, in the whole model too: that is EagleEye's re-estimation (Li et al. 2020,
    arXiv:2007.02491) in the same pass.

    Args:
        model: on the device of the rows; left as it was, in eval mode.
        rows: what the model is asked, never the test split.

    Returns:
        The damage is the mean KL divergence of softened answers (temperature 2) for a classifier, else the mean squared
        difference over the variance of the whole model's answers. It never falls as a group gets narrower.
    """
    batches = list(torch.tensor_split(torch.arange(rows.count), max(1, rows.count // _BATCH)))
    with _batch_statistics(model), torch.no_grad():
        whole = _answers(model, rows, batches)
        damages: Damages = {}
        for number, group in enumerate(groups):
            progress(number / len(groups), f"narrowing {group.name}")
            worst, found = 0.0, []
            for keep in sorted(keeps[group.name], reverse=True):
                with _switched_off(model, group, group.removed(keep)):
                    worst = max(worst, _damage(_answers(model, rows, batches), whole, classification))
                found.append((keep, worst))
            damages[group.name] = found
    return damages


def _answers(model: nn.Module, rows: Rows, batches: list[Tensor]) -> Tensor:
    return torch.cat([model(**rows(index, None).inputs).float() for index in batches])


def _damage(found: Tensor, whole: Tensor, classification: bool) -> float:
    if classification:
        value = soft_target_loss(found, whole, temperature=_TEMPERATURE) / _TEMPERATURE**2
    else:
        value = (found - whole).square().mean() / whole.var().clamp_min(1e-12)
    return float(torch.nan_to_num(value, nan=1e6, posinf=1e6))


@contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    """BatchNorm measures each batch and leaves its running statistics alone."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()


@contextmanager
def _switched_off(model: nn.Module, group: ChannelGroup, gone: set[int]) -> Iterator[None]:
    saved: list[tuple[nn.Parameter, Tensor]] = []
    for member in group.members:
        module = model.get_submodule(member.module)
        index = [i for i, root in zip(member.indices, member.roots, strict=True) if root in gone]
        for parameter, dimension, places in _slices(module, member, torch.tensor(index, dtype=torch.int64)):
            saved.append((parameter, parameter.detach().clone()))
            parameter.index_fill_(dimension, places.to(parameter.device), 0.0)
    try:
        yield
    finally:
        for parameter, value in reversed(saved):
            parameter.copy_(value)


def _slices(module: nn.Module, member: Member, index: Tensor) -> Iterator[tuple[nn.Parameter, int, Tensor]]:
    """The parameters that hold these of the member's channels, in which dimension, and where."""
    if isinstance(module, nn.RNNBase):
        found = unit_rows(module, index) if member.outputs else ((w, index) for w in input_weights(module))
        yield from ((parameter, int(not member.outputs), places) for parameter, places in found)
        return
    transposed = bool(getattr(module, "transposed", False))
    grouped = getattr(module, "groups", 1) > 1
    if not isinstance(module, PRUNABLE + _NORMS):
        return
    for name, parameter in module.named_parameters(recurse=False):
        if name == "bias" or parameter.ndim == 1:
            if member.outputs:
                yield parameter, 0, index
        elif not grouped or (member.outputs and not transposed):  # inputs of a grouped weight are numbered by group
            yield parameter, int(member.outputs == transposed), index
