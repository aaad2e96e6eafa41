"""Metrics of answers with a class for each place: shares of places, intersection over union, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.evidence.number_text import is_share
from tasks.evidence.scoring import builtin_scores
from tasks.running.errors import WorkloadError
from tasks.running.stage import WorkloadRef
from tasks.running.task_kind import fits_classes
from tasks.workloads.sample_scores import iou_scores, pixel_accuracy_scores
from tasks.workloads.workload import IOU, PIXEL_ACCURACY, Metric, Workload

TARGETS = np.array([[[0, 0], [1, 1]], [[0, 0], [0, 0]], [[0, 255], [1, 255]], [[255, 255], [255, 255]]], np.uint8)
ANSWERS = np.array([[[0, 1], [1, 1]], [[0, 0], [0, 0]], [[1, 0], [1, 0]], [[0, 0], [0, 0]]])


def logits(answers: NDArray[Any], classes: int = 3) -> NDArray[np.float32]:
    return np.moveaxis(np.eye(classes, dtype=np.float32)[answers], -1, 1)


def test_the_share_of_the_labelled_places_that_are_right() -> None:
    assert pixel_accuracy_scores(logits(ANSWERS), TARGETS).tolist() == [0.75, 1.0, 0.5, 1.0]


def test_intersection_over_union_is_the_mean_of_the_classes_that_occur() -> None:
    expected = [(1 / 2 + 2 / 3) / 2, 1.0, (0 / 1 + 1 / 2) / 2, 1.0]
    assert iou_scores(logits(ANSWERS), TARGETS).tolist() == pytest.approx(expected)
    assert builtin_scores("iou", logits(ANSWERS), TARGETS).tolist() == pytest.approx(expected)


def test_no_number_is_no_class() -> None:
    broken = logits(ANSWERS)
    broken[1] = np.nan
    assert pixel_accuracy_scores(broken, TARGETS)[1] == iou_scores(broken, TARGETS)[1] == 0.0


def test_shapes_say_whether_answers_are_classes() -> None:
    assert fits_classes((2, 3, 8, 8), (2, 8, 8)) and fits_classes((-1, 3, -1, -1), (-1, 8, 8))
    for outputs in ((2, 8, 8), (2, 1, 8, 8), (2, 3, 4, 4), (2, 3)):
        assert not fits_classes(outputs, (2, 8, 8))
    with pytest.raises(ValueError, match=r"they are \[4, 3, 2\] and \[4, 2, 2\]"):
        iou_scores(logits(ANSWERS)[..., 0], TARGETS)


def test_the_default_metric_fits_the_targets_and_a_misfit_is_told_before_training() -> None:
    plain = Workload(object(), WorkloadRef(path="a:B"))
    assert plain.metric(TARGETS) is PIXEL_ACCURACY and plain.metric_ref(TARGETS).builtin
    assert plain.scores(logits(ANSWERS), TARGETS).shape == (4,)
    with pytest.raises(
        WorkloadError, match=r"metric 'pixel_accuracy' does not take outputs float32\[4, 3\] and targets"
    ):
        plain.scores(logits(ANSWERS)[..., 0, 0], TARGETS)

    class Whole:
        def metric(self) -> Metric:
            return Metric("right", "higher", lambda outputs, targets: (outputs.argmax(1) == targets).astype(float))

    with pytest.raises(WorkloadError, match=r"returned shape \[4, 2, 2\] for 4 samples"):
        Workload(Whole(), WorkloadRef(path="a:B")).scores(logits(ANSWERS), TARGETS)


def test_shares_are_shown_in_percent() -> None:
    assert all(is_share(name) for name in (IOU.name, PIXEL_ACCURACY.name, "mean_iou", "mIoU"))
    assert not is_share("previous")
