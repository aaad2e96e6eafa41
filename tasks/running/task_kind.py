"""What a model learns: one word, on which loss, teaching, metric and the endpoint's answers depend."""

from __future__ import annotations

from typing import Literal, get_args

TaskKind = Literal["binary", "classes", "labels", "regression", "places", "other"]
"""What the targets [N, ...] and the model's answers [N, ...] are:

- ``binary``: targets 0 or 1, one logit each; above 0 means class 1.
- ``classes``: targets are class numbers from 0, a logit for each class [N, classes].
- ``labels``: several labels per sample, each 0 or 1, and a logit for each [N, labels].
- ``regression``: numbers, and as many are answered.
- ``places``: a class for each pixel of a picture or step of a sequence; targets [N, ...], answers [N, classes, ...].
- ``other``: what only the workload's own loss and metric understand.
"""

TASK_KINDS: tuple[TaskKind, ...] = get_args(TaskKind)
CHOICES: tuple[TaskKind, ...] = ("binary", "classes")
"""One class for each sample."""
BY_SIGMOID: tuple[TaskKind, ...] = ("binary", "labels")
"""Each answer is a logit of its own."""
BY_SOFTMAX: tuple[TaskKind, ...] = ("classes", "places")
"""Answers are logits along dimension 1 that share one probability."""


def kind_by_shape(answer: tuple[int, ...], target: tuple[int, ...], *, whole: bool) -> TaskKind:
    """What answers and targets of these shapes are, whatever the values of the targets.

    Args:
        answer, target: shapes with the rows first; sizes of -1 are free.
        whole: whether the targets are integers.

    Returns:
        ``other`` where the shapes do not go together.
    """
    same = _alike(answer[1:], target[1:]) or (_single(answer) and _single(target))
    if not whole:
        return "regression" if same else "other"
    if same:
        return "binary" if _single(answer) else "labels"
    if fits_classes(answer, target):
        return "classes" if len(target) == 1 else "places"
    return "other"


def fits_classes(outputs: tuple[int, ...], targets: tuple[int, ...]) -> bool:
    """Whether answers of shape [N, C, ...] are logits of several classes for integer targets of shape [N, ...].

    Dimensions of -1 are free, and so is the first.
    """
    if len(outputs) != len(targets) + 1 or 0 <= outputs[1] <= 1:
        return False
    return _alike(outputs[2:], targets[1:])


def _alike(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(one) == len(other) and all(-1 in pair or pair[0] == pair[1] for pair in zip(one, other, strict=True))


def _single(shape: tuple[int, ...]) -> bool:
    return all(size == 1 for size in shape[1:])
