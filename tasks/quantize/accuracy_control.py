"""Accuracy control: put the layers that ruin an int8 model back to fp32, and no more than needed.

After NNCF's accuracy-aware quantization (openvinotoolkit/nncf, nncf/quantization/algorithms/accuracy_control): rank the
groups on the samples that differ most, put the worst back until the metric is within its budget. Unlike it, groups are
then tried in int8 again, and neighbours are ranked as pairs too: a tensor that must not be rounded stays rounded
until both the layer that writes it and the one that reads it are out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tasks.quantize.layer_groups import LayerGroup
from tasks.running.errors import ParityFailed

Array = NDArray[Any]
Predict = Callable[[frozenset[str], NDArray[np.int64] | None], Array]
"""Outputs of the model with the named nodes in fp32, on the rows of these numbers (None = all)."""

_TOGETHER = 1.5
"""A pair is a candidate if it wins this many times what its two members win alone."""


@dataclass(frozen=True)
class ControlStep:
    """One try. ``score``: relative squared error left on the ranking samples; None: not ranked, or no number."""

    phase: Literal["int8", "to fp32", "back to int8"]
    group: str
    score: float | None
    drop: float
    kept: bool


@dataclass(frozen=True)
class Controlled:
    """``excluded``: node names to leave in fp32. ``fp32_groups`` by name; ``fp32_share`` of the multiply-accumulates
    (None where they are not known); ``drop`` of the final model."""

    excluded: frozenset[str]
    fp32_groups: tuple[str, ...]
    fp32_share: float | None
    drop: float
    steps: tuple[ControlStep, ...]


def control_accuracy(
    groups: list[LayerGroup],
    *,
    predict: Predict,
    parent: Array,
    drop: Callable[[Array], float],
    max_drop: float,
    samples: int,
) -> Controlled:
    """Find which groups must stay in fp32.

    Args:
        groups: see :func:`tasks.quantize.layer_groups.layer_groups`.
        predict: called once per try; rows in the order of ``parent``.
        parent: the fp32 model's outputs, [N, ...].
        drop: how much worse outputs [N, ...] are than the parent's, in the metric's unit; negative is better.
        max_drop: what is accepted.
        samples: rows that groups are ranked on, those that differ most.

    Raises:
        ParityFailed: the drop is not a number.
    """
    outputs = predict(frozenset(), None)
    current = _checked(drop(outputs), "all layers in int8")
    steps = [ControlStep("int8", "all", None, current, True)]
    if current <= max_drop:
        return Controlled(frozenset(), (), _share(groups, set()), current, tuple(steps))
    rows = most_different(parent, outputs, samples)

    out: set[int] = set()
    order = _rank(groups, out, predict, parent[rows], rows)
    while current > max_drop:
        score, members = order.pop(0)
        if members <= out:
            continue
        out |= members
        found = _checked(drop(predict(_nodes(groups, out), None)), _names(groups, members))
        left = score if np.isfinite(score) else None
        steps.append(ControlStep("to fp32", _names(groups, members), left, found, True))
        if found > current and len(out) < len(groups):
            order = _rank(groups, out, predict, parent[rows], rows)
        current = found
        if len(out) == len(groups):
            break

    # The cheapest to run in fp32 are tried last, so that they are what remains out.
    for number in sorted(out, key=lambda i: -(groups[i].macs or 0)) if len(out) > 1 else []:
        found = _checked(drop(predict(_nodes(groups, out - {number}), None)), groups[number].name)
        kept = found <= max_drop
        steps.append(ControlStep("back to int8", groups[number].name, None, found, kept))
        if kept:
            out, current = out - {number}, found
    names = tuple(groups[i].name for i in sorted(out))
    return Controlled(_nodes(groups, out), names, _share(groups, out), current, tuple(steps))


def most_different(parent: Array, outputs: Array, samples: int) -> NDArray[np.int64]:
    """Sorted numbers of the rows whose outputs differ most, at most ``samples``."""
    distance = np.square(outputs.astype(np.float64) - parent).reshape(len(parent), -1).sum(axis=1)
    distance = np.nan_to_num(distance, nan=np.inf)
    rows: NDArray[np.int64] = np.sort(np.argsort(-distance, kind="stable")[:samples]).astype(np.int64)
    return rows


def relative_error(parent: Array, outputs: Array) -> float:
    """Squared error relative to the parent's own size; infinite where an output is no number."""
    error = float(np.square(outputs.astype(np.float64) - parent).sum())
    size = float(np.square(parent, dtype=np.float64).sum())
    return (error / size if size else error) if np.isfinite(error) else float("inf")


def _rank(
    groups: list[LayerGroup], out: set[int], predict: Predict, parent: Array, rows: NDArray[np.int64]
) -> list[tuple[float, frozenset[int]]]:
    """Candidates, worst first: the error that is left when only they leave int8, and which groups they are."""

    def error_without(members: set[int]) -> float:
        return relative_error(parent, predict(_nodes(groups, out | members), rows))

    base = error_without(set())
    rest = [i for i in range(len(groups)) if i not in out]
    alone = {i: error_without({i}) for i in rest}
    ranked = [(error, frozenset({i})) for i, error in alone.items()]
    for i in rest:
        for j in groups[i].before:
            if j in alone:
                error = error_without({i, j})
                single = sum(max(0.0, base - alone[k]) for k in (i, j) if np.isfinite(alone[k]))
                if base - error > _TOGETHER * single:
                    ranked.append((error, frozenset({i, j})))
    return sorted(ranked, key=lambda pair: (pair[0], len(pair[1]), sorted(pair[1])))


def _nodes(groups: list[LayerGroup], members: set[int]) -> frozenset[str]:
    return frozenset(name for i in members for name in groups[i].nodes)


def _names(groups: list[LayerGroup], members: frozenset[int]) -> str:
    return " with ".join(groups[i].name for i in sorted(members))


def _share(groups: list[LayerGroup], members: set[int]) -> float | None:
    known = [g.macs for g in groups]
    if None in known:
        return None
    total = sum(m or 0 for m in known)
    return sum(groups[i].macs or 0 for i in members) / total if total else 0.0


def _checked(value: float, what: str) -> float:
    if not np.isfinite(value):
        raise ParityFailed(
            f"accuracy control: the metric's drop is {value} after {what}; it must be a finite number: look at the "
            "workload's metric and at NaN in the validation split"
        )
    return value
