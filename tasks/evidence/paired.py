"""A variant against a reference on the same samples, and the interval of a metric."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_registry.measurement import Better, MetricEstimate, PairedComparison
from tasks.evidence.bootstrap import bootstrap_mean
from tasks.evidence.mean_bound import mean_bound
from tasks.evidence.proportion import loss_bound, mcnemar_p, paired_interval, wilson

Scores = NDArray[np.float64]
"""One score per sample, shape [n]."""

INDICES_KEPT = 200


def is_binary(*scores: Scores) -> bool:
    """Whether every score is 0 or 1: right or wrong."""
    return all(bool(np.isin(s, (0.0, 1.0)).all()) for s in scores)


def largest_loss(gain: Scores, scores: Scores, reference: Scores) -> float:
    """The largest loss of a sample to reckon with: the largest difference seen, and where there is none the range of
    the scores."""
    seen = float(np.abs(gain).max(initial=0.0))
    return seen or float(max(scores.max(), reference.max()) - min(scores.min(), reference.min()))


def summarise_pairs(scores: Scores, *, name: str, better: Better) -> MetricEstimate:
    """Mean score with its 95 % interval: Wilson's for right and wrong, BCa bootstrap otherwise."""
    binary = is_binary(scores)
    interval = wilson(int(scores.sum()), len(scores)) if binary else bootstrap_mean(scores).interval()
    return MetricEstimate(name=name, better=better, value=float(scores.mean()), interval=interval)


def compare_paired(scores: Scores, reference_scores: Scores, *, better: Better, reference: str) -> PairedComparison:
    """Compare a variant's scores with a reference's on the same samples.

    Right and wrong: exact McNemar p, Tango's score interval. Other scores: bootstrap of the mean difference, and a
    bound that reckons with one more loss as large as the largest difference seen.

    Args:
        scores, reference_scores: shape [n], in the same order of samples.
        better: which way is better; differences are turned so that positive is better.
        reference: digest of the reference.

    Raises:
        ValueError: the two have different lengths.
    """
    if scores.shape != reference_scores.shape:
        raise ValueError(f"{scores.shape} scores cannot be paired with {reference_scores.shape} of the reference")
    gain = (scores - reference_scores) * (1.0 if better == "higher" else -1.0)
    ups, downs = np.flatnonzero(gain > 0), np.flatnonzero(gain < 0)
    n, up, down = len(gain), len(ups), len(downs)
    if is_binary(scores, reference_scores):
        interval, bound, p = paired_interval(up, down, n), loss_bound(up, down, n), mcnemar_p(up, down)
    else:
        resampled = bootstrap_mean(-gain)
        low, high = resampled.interval()
        interval, p = (-high, -low), resampled.p_of_zero()
        bound = mean_bound(-gain, unseen=largest_loss(gain, scores, reference_scores))
    return PairedComparison(
        reference=reference,
        samples=n,
        better=up,
        worse=down,
        better_indices=tuple(int(i) for i in ups[:INDICES_KEPT]),
        worse_indices=tuple(int(i) for i in downs[:INDICES_KEPT]),
        difference=float(gain.mean()),
        interval=interval,
        bound=bound,
        p=p,
        test="mcnemar" if is_binary(scores, reference_scores) else "bootstrap",
    )
