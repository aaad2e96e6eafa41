"""How much worse than the fp32 model a quantized one answers, in the unit of the workload's metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from tasks.evidence.scoring import score
from tasks.quantize.agreement import agree
from tasks.running.errors import CalibrationError
from tasks.running.splits import DataRef
from tasks.running.stage import WorkloadRef

Array = NDArray[Any]
Drop = Callable[[Array], float]
"""Outputs [N, ...] to how much worse they are than the parent's; negative is better."""


def drop_of_metric(data: DataRef, workload: WorkloadRef, parent: Array, targets: Array) -> Drop:
    """By the workload's metric, averaged over the split.

    Args:
        parent: the fp32 model's outputs, [N, ...].
        targets: [N, ...].

    Raises:
        ParityFailed: a score is not finite.
        WorkloadError: the workload's metric cannot be computed.
    """
    sign = 1.0 if data.metric.better == "higher" else -1.0
    reference = float(score(data, workload, parent, targets, name="the fp32 model").mean())

    def drop(outputs: Array) -> float:
        return sign * (reference - float(score(data, workload, outputs, targets, name="a quantized model").mean()))

    return drop


def drop_of_agreement(parent: Array) -> Drop:
    """Share of the rows whose arg max changes.

    Raises:
        CalibrationError: the outputs are no [N, classes].
    """
    if agree(parent, parent).agreement is None:
        raise CalibrationError(
            f"quantize.accuracy_control: outputs of shape {list(parent.shape)} have no arg max to compare, and the "
            "workload's metric cannot be computed: fix the metric, or remove accuracy_control"
        )
    return lambda outputs: 1.0 - (agree(parent, outputs).agreement or 0.0)
