"""What each channel group is worth: the damage to the model's answers when only it is narrowed, before any tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tasks.running.task_kind import BY_SIGMOID, BY_SOFTMAX, TaskKind
from tasks.torch_models.channel_groups import ChannelGroup
from tasks.torch_models.channel_pruner import ChannelPruner
from tasks.torch_models.fit_rows import Rows
from tasks.torch_models.objective import soft_label_loss, soft_target_loss

Damages = dict[str, list[tuple[int, float]]]
"""By group: channels left and the damage, from wide to narrow."""

_BATCH = 64
"""Rows answered at a time, as much as fits a CPU's caches."""
_TEMPERATURE = 2.0


def measure_damage(
    pruner: ChannelPruner,
    rows: Rows,
    groups: list[ChannelGroup],
    keeps: Mapping[str, list[int]],
    *,
    task: TaskKind,
    progress: Callable[[float, str], None],
) -> Damages:
    """Narrow one group at a time to each of ``keeps`` and compare the answers with those of the whole model.

    The channels are really removed, and put back. BatchNorm uses the statistics of each batch, in the whole model too:
    that is EagleEye's re-estimation (Li et al. 2020, arXiv:2007.02491) in the same pass.

    Args:
        pruner: of the model, which is on the device of the rows; the model is left as it was, in eval mode.
        rows: what the model is asked, never the test split.

    Returns:
        The damage is the mean KL divergence of softened answers (temperature 2) where they are logits, else the mean
        squared difference over the variance of the whole model's answers. It never falls as a group gets narrower.
    """
    model = pruner.model
    batches = list(torch.tensor_split(rows.lengths.order(rows.count), max(1, rows.count // _BATCH)))
    with _batch_statistics(model), torch.no_grad():
        whole = _answers(model, rows, batches)
        damages: Damages = {}
        for number, group in enumerate(groups):
            progress(number / len(groups), f"narrowing {group.name}")
            worst, found = 0.0, []
            for keep in sorted(keeps[group.name], reverse=True):
                with pruner.without(group, keep):
                    worst = max(worst, _damage(_answers(model, rows, batches), whole, task))
                found.append((keep, worst))
            damages[group.name] = found
    return damages


def _answers(model: nn.Module, rows: Rows, batches: list[Tensor]) -> Tensor:
    return torch.cat([model(**rows(index, None, cut=True).inputs).float() for index in batches])


def _damage(found: Tensor, whole: Tensor, task: TaskKind) -> float:
    if task in BY_SOFTMAX:
        value = soft_target_loss(found, whole, temperature=_TEMPERATURE) / _TEMPERATURE**2
    elif task in BY_SIGMOID:
        value = soft_label_loss(found, whole, temperature=_TEMPERATURE) / _TEMPERATURE**2
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
