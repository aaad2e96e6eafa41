"""How far an int8 model's answers are from its parent's, on the same rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tasks.quantize.calibration import Feeds
from tasks.workloads.sample_scores import accuracy_scores, top_classes

_BATCH = 16


@dataclass(frozen=True)
class Agreement:
    """``agreement``: share of the rows that answer the same class; None where the answer is no [N, classes].
    ``error``: root mean square of the difference, relative to that of the parent's answers."""

    agreement: float | None
    error: float


def top_answers(file: bytes, feeds: Feeds) -> NDArray[Any]:
    """The first output for all rows, 16 at a time."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    first = [session.get_outputs()[0].name]
    rows = len(next(iter(feeds.values())))
    parts = [session.run(first, {n: v[i : i + _BATCH] for n, v in feeds.items()})[0] for i in range(0, rows, _BATCH)]
    output: NDArray[Any] = np.concatenate(parts)
    return output


def agree(parent: NDArray[Any], child: NDArray[Any]) -> Agreement:
    """Compare two models' answers to the same rows."""
    size = float(np.sqrt(np.mean(np.square(parent, dtype=np.float64))))
    with np.errstate(invalid="ignore"):  # infinity less infinity: the error is NaN then
        distance = float(np.sqrt(np.mean(np.square(child.astype(np.float64) - parent))))
    same = None
    if parent.ndim == 2 and parent.shape[1] > 1:
        same = float(np.mean(accuracy_scores(child, top_classes(parent))))
    return Agreement(same, distance / size if size else distance)
