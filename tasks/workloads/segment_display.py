"""Several labels per sample: which segments of a seven-segment display would show a handwritten digit?"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from tasks.running.splits import TARGET, Columns
from tasks.workloads.architectures import ImageClassifier
from tasks.workloads.digits import WHITE, Digits
from tasks.workloads.workload import LABEL_ACCURACY, Inputs, Metric

# Top, upper left, upper right, middle, lower left, lower right, bottom; a row per digit.
_LIT = "1110111 0010010 1011101 1011011 0111010 1101011 1101111 1010010 1111111 1111011"
SEGMENTS = np.array([[int(lit) for lit in digit] for digit in _LIT.split()], dtype=np.float32)


class SegmentDisplay:
    """One input ``image``, FP32 [N, 1, 8, 8], raw pixels 0 to 16; seven labels, each on or off, FP32 [N, 7].

    The model answers a logit per label: above 0 means on. Targets of 0.0 and 1.0 are floating point, which keeps them
    from being taken for the number of one class.

    Args:
        rows: use only this number of images, for quick runs.
    """

    def __init__(self, rows: int | None = None) -> None:
        self.digits = Digits(rows=rows)

    def splits(self) -> dict[str, Columns]:
        """Those of :class:`Digits`; ``target`` [rows, 7] instead of the digit's number."""
        return {
            name: {"image": columns["image"], TARGET: SEGMENTS[columns[TARGET]]}
            for name, columns in self.digits.splits().items()
        }

    def model(self, role: str, width: float = 1.0) -> nn.Module:
        """The ImageClassifier with an output per label."""
        return ImageClassifier(shape=(1, 8, 8), classes=SEGMENTS.shape[1], width=width)

    def preprocess(self, inputs: Inputs) -> Inputs:
        return {"image": inputs["image"] / WHITE}

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy, averaged over rows and labels; both [N, 7]."""
        return nn.functional.binary_cross_entropy_with_logits(outputs, targets)

    def metric(self) -> Metric:
        """Share of the labels that are right, from 0 to 1 for each row."""
        return LABEL_ACCURACY
