"""Whether a variant loses as much on one split as on another, up to chance."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from model_registry.variant import Frozen
from tasks.evidence.paired import Scores

CHANCE = 0.01
"""Below this p the splits are said to differ."""


class SplitGap(Frozen):
    """The loss on the test split against that on validation."""

    difference: float
    """Mean loss on test - mean loss on validation, in the metric's own unit; positive: worse on test."""
    p: float
    """Two-sided p of 'both splits have the same mean loss'."""

    @property
    def real(self) -> bool:
        """Whether it is more than chance gives."""
        return self.p < CHANCE


def split_gap(validation: Scores, test: Scores) -> SplitGap:
    """Compare the mean losses of two splits: z test of two means with one pooled variance.

    For right and wrong answers this is the test of two proportions, extended to losses of -1, 0 and 1. Pooled, since a
    split without any flip has no variance of its own.

    Args:
        validation, test: loss against the baseline by sample, shapes [n] and [m], positive is worse.

    Raises:
        ValueError: a split without samples.
    """
    if not len(validation) or not len(test):
        raise ValueError(f"two splits of {len(validation)} and {len(test)} samples cannot be compared: each needs some")
    difference = float(test.mean() - validation.mean())
    error = float(np.concatenate([validation, test]).std()) * math.sqrt(1 / len(validation) + 1 / len(test))
    if difference == 0.0 or error == 0.0:  # without any spread both are the same number
        return SplitGap(difference=difference, p=1.0)
    return SplitGap(difference=difference, p=2 * NormalDist().cdf(-abs(difference) / error))
