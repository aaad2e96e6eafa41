"""What a workload learns is settled before training: inferred where it is plain, refused with the remedy elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tasks.running.errors import WorkloadError
from tasks.running.stage import WorkloadRef
from tasks.running.task_kind import TaskKind
from tasks.workloads.task_check import SettledTask, settle_task
from tasks.workloads.workload import ACCURACY, Metric, Workload

GRADES = np.array([1, 2, 3, 4, 5] * 4)
RING = np.array([0, 1] * 10)
TAGS = np.array([[0, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]] * 5)
MASKS = np.arange(4 * 16).reshape(4, 4, 4) % 3


class WithLoss:
    """Binary cross-entropy of logits, as many people write it."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(outputs.reshape(targets.shape), targets.float())


class OfNumbers:
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.mse_loss(outputs.reshape(targets.shape), targets.float())


class Ordinal(OfNumbers):
    """One number for grades 1 to 5, with a loss and a metric of its own."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.mse_loss(outputs.mean(dim=1), targets.float())

    def metric(self) -> Metric:
        return Metric(
            "near", "higher", lambda answers, targets: (abs(answers.mean(axis=1) - targets) < 1).astype(float)
        )


class Named:
    def __init__(self, *names: str) -> None:
        self.names = names

    def labels(self) -> tuple[str, ...]:
        return self.names


class ByPlace:
    def metric(self) -> Metric:
        return ACCURACY


def settle(
    user: Any, answer: tuple[int, ...], target: NDArray[Any], task: TaskKind | None = None, **more: NDArray[Any]
) -> SettledTask:
    return settle_task(Workload(user, WorkloadRef(path="a:B", task=task)), answer, {"train": target, **more})


@pytest.mark.parametrize(
    ("user", "answer", "target", "kind", "metric"),
    [
        (object(), (-1, 3), RING, "classes", "accuracy"),
        (object(), (-1, 1), RING, "binary", "accuracy"),
        (object(), (-1,), RING[:, None], "binary", "accuracy"),
        (object(), (-1, 3), TAGS, "labels", "label_accuracy"),
        (object(), (-1, 3, 4, 4), MASKS, "places", "pixel_accuracy"),
        (object(), (-1, 3, -1), TAGS, "places", "pixel_accuracy"),  # a class for each step of any length
        (object(), (-1, 1), RING / 3, "regression", "mse"),
        (WithLoss(), (-1, 1), RING.astype(np.float32), "binary", "accuracy"),
        (WithLoss(), (-1, 3), TAGS.astype(np.float32), "labels", "label_accuracy"),
        (OfNumbers(), (-1, 1), RING.astype(np.float32), "regression", "mse"),
        (OfNumbers(), (-1, 1), GRADES, "regression", "mse"),
        (Ordinal(), (-1, 4), GRADES, "other", "near"),
    ],
)
def test_what_is_plain_is_inferred(
    user: Any, answer: tuple[int, ...], target: NDArray[Any], kind: str, metric: str
) -> None:
    found = settle(user, answer, target)
    assert (found.kind, found.metric.name) == (kind, metric)
    assert found.says.startswith(f"{kind}: ") and f"metric: {metric}" in found.says


@pytest.mark.parametrize(
    ("user", "answer", "target", "says"),
    [
        (
            object(),
            (-1, 5),
            GRADES,
            r"numbered 1 to 5, and the model answers 5 scores.*number them from 0, with target - 1",
        ),
        (object(), (-1, 4), GRADES - 1, r"numbered 0 to 4, and the model answers 4 .*let model\(\) answer 5 scores"),
        (object(), (-1, 5), GRADES * 100, r"100 to 500.*np\.unique\(target, return_inverse=True\)"),
        (object(), (-1, 1), GRADES, r"neither 0 and 1 nor floating point.*workload\.task: regression"),
        (object(), (-1, 4, 4, 3), MASKS, r"answer\.movedim\(-1, 1\)"),
        (object(), (-1, 3), RING[:, None], r"target\[:, 0\]"),
        (object(), (-1, 3), RING / 3, "make the model's last layer fit the targets"),
        (Named("outside", "inside", "on it"), (-1, 1), RING, r"labels\(\) has 3 names .* binary .* has 2"),
        (Named("a", "b"), (-1, 3), TAGS, r"labels\(\) has 2 names .* labels .* has 3"),
        (ByPlace(), (-1, 3, 4, 4), MASKS, r"metric 'accuracy' does not take .*winnow\.PIXEL_ACCURACY"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_remedy(
    user: Any, answer: tuple[int, ...], target: NDArray[Any], says: str
) -> None:
    with pytest.raises(WorkloadError, match=says):
        settle(user, answer, target)


def test_a_class_that_only_a_later_split_has_is_found_too() -> None:
    with pytest.raises(WorkloadError, match="numbered 0 to 5, and the model answers 5 scores"):
        settle(object(), (-1, 5), GRADES - 1, test=np.array([5]))


def test_the_spec_decides_where_it_says_so() -> None:
    floats = TAGS.astype(np.float32)
    assert settle(object(), (-1, 3), floats).kind == "regression"
    asked = settle(object(), (-1, 3), floats, task="labels")
    assert (asked.kind, asked.metric.name) == ("labels", "label_accuracy") and "as the spec says" in asked.says
    assert settle(object(), (-1, 1), GRADES, task="regression").metric.name == "mse"
    with pytest.raises(
        WorkloadError, match="task labels takes as many logits as targets a row, and targets of 0 and 1"
    ):
        settle(object(), (-1, 1), GRADES, task="labels")
    with pytest.raises(WorkloadError, match=r"needs a loss\(\) and a metric\(\)"):
        settle(object(), (-1, 3), TAGS, task="other")


def test_what_may_not_be_meant_is_told() -> None:
    (warning,) = settle(object(), (-1, 2), np.eye(2, dtype=np.float32)[RING]).warnings
    assert "exactly one 1: these look like classes" in warning
    (warning,) = settle(object(), (-1, 1), RING.astype(np.float32)).warnings
    assert "learned as numbers" in warning
    assert settle(object(), (-1, 1), RING).warnings == ()
