"""Per-sample scores of a variant's outputs. The built-in metrics need neither torch nor the workload."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_registry.measurement import MetricEstimate
from tasks.evidence.arrays import Array
from tasks.evidence.paired import summarise_pairs
from tasks.running.errors import ParityFailed, WorkloadError
from tasks.running.splits import DataRef
from tasks.running.stage import WorkloadRef
from tasks.running.task_kind import CHOICES, fits_classes
from tasks.workloads.sample_scores import (
    Scores,
    accuracy_scores,
    cosine_scores,
    iou_scores,
    jaccard_scores,
    label_accuracy_scores,
    pixel_accuracy_scores,
    squared_error_scores,
)
from tasks.workloads.sample_scores import top_classes as top_classes

_BUILTIN = {
    "accuracy": accuracy_scores,
    "label_accuracy": label_accuracy_scores,
    "pixel_accuracy": pixel_accuracy_scores,
    "iou": iou_scores,
    "mse": squared_error_scores,
    "cosine": cosine_scores,
    "jaccard": jaccard_scores,
}


def score(data: DataRef, workload: WorkloadRef, outputs: Array, targets: Array, *, name: str) -> Scores:
    """One score per sample that counts (see :func:`counted_rows`), by the metric of the data's workload.

    Args:
        outputs: first output of the variant, [N, ...].
        targets: [N, ...].
        name: the variant, for messages.

    Raises:
        ParityFailed: scores are not finite, because the variant answers NaN or infinity.
        WorkloadError: a custom metric does not give one finite score per sample.
    """
    if data.metric.builtin:
        scores = builtin_scores(data.metric.name, outputs, targets)
    else:
        from tasks.workloads.workload import load_workload  # imports torch: only for a metric of the user's own

        scores = load_workload(workload, data.known).scores(outputs, targets)
    wrong = np.flatnonzero(~np.isfinite(scores))
    broken = counted_rows(data, workload, targets)[wrong] if len(wrong) else wrong
    asked = outputs[broken] if len(scores) == len(outputs) else outputs  # of a search all rows decide
    if not data.metric.builtin and len(broken) and np.isfinite(asked).all():
        raise WorkloadError(
            f"metric {data.metric.name!r}: per_sample() gave {scores[wrong[0]]} for {len(broken)} of {len(scores)} "
            f"samples of {name} (rows {broken[:5].tolist()} ...) though the answers there are finite numbers; "
            "it must give a finite score for every sample (look for a division by zero or a logarithm of 0)"
        )
    if len(broken):
        raise ParityFailed(
            f"{name}: {data.metric.name} of {len(broken)} of {len(scores)} samples is not a finite number (rows "
            f"{broken[:5].tolist()} ...): the variant answers NaN or infinity there; look at its export or quantization"
        )
    return scores


def counted_rows(data: DataRef, workload: WorkloadRef, targets: Array) -> NDArray[np.intp]:
    """Numbers of the rows whose scores count, by the metric of the data's workload."""
    if data.metric.builtin:
        return np.arange(len(targets))
    from tasks.workloads.workload import load_workload, rows_that_count

    return rows_that_count(load_workload(workload, data.known), targets)


def per_class(data: DataRef, scores: Scores, targets: Array) -> dict[str, MetricEstimate]:
    """The metric within each true class that occurs, by label; empty for what is no classification."""
    return {
        label: summarise_pairs(scores[rows], name=data.metric.name, better=data.metric.better)
        for label, rows in by_class(data, targets).items()
    }


def by_class(data: DataRef, targets: Array) -> dict[str, NDArray[np.bool_]]:
    """Which samples [N] belong to each true class that occurs, by label; empty for what is no classification."""
    if data.task not in CHOICES or targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer):
        return {}
    labels = data.labels or ()
    return {
        labels[index] if index < len(labels) else str(index): targets == index for index in np.unique(targets).tolist()
    }


def builtin_scores(metric: str, outputs: Array, targets: Array) -> Scores:
    """Scores [N] of a built-in metric by its name (``accuracy``, ``mse``, ...), exactly as training sees them.

    Raises:
        KeyError: no such built-in metric.
    """
    return _BUILTIN[metric](outputs, targets)


def is_classifier(outputs: Array, targets: Array) -> bool:
    """Whether outputs are logits [N, C] of several classes and targets are class indices [N]."""
    return outputs.ndim == 2 and outputs.shape[1] > 1 and targets.ndim == 1 and _whole(targets)


def has_places(outputs: Array, targets: Array) -> bool:
    """Whether the outputs [N, C, ...] are logits of a class for each of several places of a sample."""
    return _whole(targets) and targets.ndim > 1 and fits_classes(outputs.shape, targets.shape)


def _whole(targets: Array) -> bool:
    return bool(np.issubdtype(targets.dtype, np.integer))
