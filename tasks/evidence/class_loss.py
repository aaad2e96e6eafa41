"""What a variant loses within single classes, and how much of that is beyond chance."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from model_registry.measurement import Better, ClassLoss
from tasks.evidence.arrays import Array
from tasks.evidence.mean_bound import mean_bound
from tasks.evidence.paired import Scores, is_binary, largest_loss
from tasks.evidence.proportion import loss_shown
from tasks.evidence.scoring import by_class
from tasks.running.splits import DataRef

ALPHA = 0.05
"""Shared among the classes (Bonferroni): one in twenty variants that lose the margin in every class is refused."""


def class_losses(data: DataRef, scores: Scores, reference: Scores, targets: Array) -> dict[str, ClassLoss]:
    """Each class that occurs, by label; empty for what is no classification.

    Args:
        scores, reference: of the variant and the baseline, [N] each.
    """
    rows = by_class(data, targets)
    level = 1 - ALPHA / max(1, len(rows))
    return {label: _loss(scores[own], reference[own], data.metric.better, level) for label, own in rows.items()}


def fewest_samples(margin: float, classes: int) -> int:
    """Samples of a class below which not even a loss of all of them would be shown to exceed the margin."""
    z = NormalDist().inv_cdf(1 - ALPHA / max(1, classes))
    return next(n for n in range(1, 10_000) if loss_shown(0, n, n, z) > min(margin, 0.99))


def _loss(scores: Scores, reference: Scores, better: Better, level: float) -> ClassLoss:
    gain = (scores - reference) * (1.0 if better == "higher" else -1.0)
    n, up, down = len(gain), int((gain > 0).sum()), int((gain < 0).sum())
    if is_binary(scores, reference):
        shown = loss_shown(up, down, n, NormalDist().inv_cdf(level))
    else:
        shown = -mean_bound(gain, unseen=largest_loss(gain, scores, reference), level=level)
    return ClassLoss(samples=n, loss=-float(np.mean(gain)), shown=shown)
