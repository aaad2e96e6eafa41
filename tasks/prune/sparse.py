"""Sparsity: single weights become zero and stay it. The layers keep their shapes, so no runtime gets faster by it."""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tasks.running.errors import PruningRefused
from tasks.torch_models.channel_pruner import PRUNABLE
from tasks.torch_models.pruning_plan import Plan

SparseImportance = Literal["magnitude", "taylor", "hessian"]
NO_GAIN = "none: zeros are multiplied like any other number; they only make the file smaller once it is compressed"


class WeightPruner:
    """Zeroes weights of one model in place, in one or more steps; they stay zero in training until :meth:`release`.

    Args:
        model: on the device where it will be trained.
        pattern: ``unstructured``: the least important weights; ``2:4``: the two least important of each four
            consecutive inputs (Mishra et al. 2021, arXiv:2104.08378), whatever the ratio. Inputs left over stay.
        ratio: share of the weights to remove in the end.
        ratios: another share by layer name; unstructured only.
        steps: after each of so many calls of :meth:`step` an equal part of the ratio is gone.
        importance: the weight's magnitude, its product with the gradient (taylor), or its square times the mean square
            of gradients of single rows (hessian).
        everywhere: the ratio holds for all layers without a ratio of their own together, not for each.
        ignore: names of modules left alone.

    Raises:
        PruningRefused: a module named is not there, or nothing is left to prune.
    """

    untraced: tuple[str, ...] = ()

    def __init__(
        self,
        model: nn.Module,
        *,
        pattern: Literal["unstructured", "2:4"],
        ratio: float,
        ratios: dict[str, float] | None = None,
        steps: int = 1,
        importance: SparseImportance = "magnitude",
        everywhere: bool = False,
        ignore: tuple[str, ...] = (),
    ) -> None:
        modules = dict(model.named_modules())
        unknown = sorted(set(ignore) - modules.keys())
        if unknown:
            raise PruningRefused(f"ignored are {unknown}, which the model lacks; it has {sorted(modules)[1:]}")
        left_alone = {inner for name in ignore for inner in modules[name].modules()}
        self.layers = {n: m for n, m in modules.items() if isinstance(m, PRUNABLE) and m not in left_alone}
        if not self.layers:
            raise PruningRefused(f"nothing to prune in model {type(model).__name__}: no layer, or all are ignored")
        self.ratios = ratios or {}
        unknown = sorted(self.ratios.keys() - self.layers.keys())
        if unknown:
            raise PruningRefused(f"prune.ratios names {unknown}; layers that can be pruned: {list(self.layers)}")
        self.model, self.pattern, self.ratio, self.everywhere = model, pattern, ratio, everywhere
        self.importance, self.steps, self.done = importance, steps, 0
        self._held: list[RemovableHandle] = []

    @property
    def plan(self) -> Plan:
        """No channel goes."""
        return []

    def widths(self) -> dict[str, int]:
        """Output channels or units of every convolution and linear layer, by name."""
        return {n: len(_by_output(m)) for n, m in self.model.named_modules() if isinstance(m, PRUNABLE)}

    def step(self) -> None:
        """Zero the next part of the weights and hold them there."""
        self.release()
        self.done += 1
        for name, keep in self._masks().items():
            weight = self.layers[name].weight
            keep = keep.to(weight.device)
            with torch.no_grad():
                weight.mul_(keep)
            # Without a gradient a zero stays zero in SGD and in Adam, whose decay only shrinks it.
            self._held.append(weight.register_hook(keep.mul))  # type: ignore[no-untyped-call]

    def release(self) -> None:
        """Let the zeros train again."""
        for handle in self._held:
            handle.remove()
        self._held.clear()

    def _masks(self) -> dict[str, Tensor]:
        scores = {name: self._score(layer.weight) for name, layer in self.layers.items()}
        if self.pattern == "2:4":
            return {name: two_of_four(layer, scores[name]) for name, layer in self.layers.items()}
        share = self.done / self.steps
        masks = {n: _keep_largest(s, self.ratios.get(n, self.ratio) * share) for n, s in scores.items()}
        if self.everywhere:
            rest = [name for name in scores if name not in self.ratios]
            if rest:
                kept = _keep_largest(torch.cat([scores[name].flatten() for name in rest]), self.ratio * share)
                parts = torch.split(kept, [scores[name].numel() for name in rest])
                masks |= {name: part.reshape(scores[name].shape) for name, part in zip(rest, parts, strict=True)}
        return masks

    def _score(self, weight: Tensor) -> Tensor:
        value = weight.detach()
        if self.importance == "magnitude" or weight.grad is None:
            return value.abs()
        return (value * weight.grad).abs() if self.importance == "taylor" else value.square() * weight.grad


@dataclass(frozen=True)
class Sparsity:
    """Zeros among the weights of convolutions and linear layers.

    ``by_layer``: share of zeros. ``deflated_bytes``: all the model's tensors, compressed with zlib.
    """

    weights: int
    zeros: int
    by_layer: dict[str, float]
    deflated_bytes: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def sparsity(model: nn.Module) -> Sparsity:
    """Count the zeros."""
    layers = {name: m.weight.detach() for name, m in model.named_modules() if isinstance(m, PRUNABLE)}
    zeros = {name: int((weight == 0).sum()) for name, weight in layers.items()}
    deflated = sum(
        len(zlib.compress(t.detach().cpu().contiguous().numpy().tobytes())) for t in model.state_dict().values()
    )
    return Sparsity(
        weights=sum(weight.numel() for weight in layers.values()),
        zeros=sum(zeros.values()),
        by_layer={name: zeros[name] / weight.numel() for name, weight in layers.items()},
        deflated_bytes=deflated,
    )


def two_of_four(layer: nn.Module, scores: Tensor) -> Tensor:
    """Mask of the two largest scores in each four consecutive inputs of an output; [shape of the weight], bool.

    The four are input channels at one position of the kernel, as sparse matrix units read them. What has fewer than
    four input channels (a depthwise convolution) keeps all.
    """
    rows = _by_output(layer, scores).movedim(1, -1)
    whole = rows.shape[-1] // 4 * 4
    keep = torch.ones_like(rows, dtype=torch.bool)
    fours = rows[..., :whole].reshape(*rows.shape[:-1], -1, 4)
    worst = fours.argsort(dim=-1, stable=True)[..., :2]
    keep[..., :whole] = torch.ones_like(fours, dtype=torch.bool).scatter(-1, worst, False).flatten(-2)
    return _by_output(layer, keep.movedim(-1, 1))


def _by_output(layer: nn.Module, weight: Tensor | None = None) -> Tensor:
    """[outputs, inputs, ...] of a weight, which transposed convolutions store the other way round; its own inverse."""
    found: Tensor = layer.weight if weight is None else weight  # type: ignore[assignment]
    return found.transpose(0, 1) if getattr(layer, "transposed", False) else found


def _keep_largest(scores: Tensor, ratio: float) -> Tensor:
    """Mask of all but the ``ratio`` smallest, ties by position; bool [shape of scores]."""
    keep = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    keep[scores.flatten().argsort(stable=True)[: round(scores.numel() * ratio)]] = False
    return keep.reshape(scores.shape)
