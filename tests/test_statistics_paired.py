"""Paired comparison, bootstrap and Pareto front."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tasks.evidence.bootstrap import bootstrap_mean
from tasks.evidence.mean_bound import mean_bound
from tasks.evidence.paired import compare_paired, summarise_pairs
from tasks.evidence.pareto import front
from tasks.evidence.proportion import loss_bound, loss_shown
from tasks.evidence.scoring import builtin_scores, is_classifier
from tasks.workloads import workload
from tasks.workloads.sample_scores import accuracy_scores, squared_error_scores

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks.bound_coverage import CASES, coverage

DIGEST = "0" * 64


def test_flips_are_counted_and_named() -> None:
    reference = np.array([1.0, 1, 1, 0, 0, 1])
    variant = np.array([1.0, 0, 1, 1, 0, 0])
    result = compare_paired(variant, reference, better="higher", reference=DIGEST)
    assert (result.better, result.worse, result.test) == (1, 2, "mcnemar")
    assert result.better_indices == (3,) and result.worse_indices == (1, 5)
    assert result.difference == pytest.approx(-1 / 6)
    assert result.interval[0] < result.difference < result.interval[1]
    assert result.p == 1.0 and result.reference == DIGEST


def test_lower_is_better_turns_the_sign() -> None:
    generator = np.random.default_rng(0)
    reference = generator.gamma(2.0, 1.0, 500)
    result = compare_paired(reference * 0.5, reference, better="lower", reference=DIGEST)
    assert result.test == "bootstrap" and result.better == 500 and result.worse == 0
    assert result.difference > 0 and result.interval[0] > 0
    assert result.bound < 0  # the loss is certainly negative
    assert result.p < 0.001
    worse = compare_paired(reference * 1.5, reference, better="lower", reference=DIGEST)
    assert worse.difference < 0 and worse.bound > -worse.difference > 0


def test_the_bound_is_one_sided_at_95_percent() -> None:
    """For many samples the mean is normal: 1.645 standard errors, not the 1.96 of the interval's ends."""
    reference = np.zeros(4000)
    scores = np.random.default_rng(7).normal(0.3, 1.0, 4000)
    result = compare_paired(scores, reference, better="lower", reference=DIGEST)
    assert result.test == "bootstrap"
    error = scores.std() / np.sqrt(len(scores))
    assert (result.bound - scores.mean()) / error == pytest.approx(1.645, abs=0.1)
    assert (-result.interval[0] - scores.mean()) / error == pytest.approx(1.96, abs=0.1)


def test_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        compare_paired(np.ones(3), np.ones(4), better="higher", reference=DIGEST)


def test_bootstrap_is_seeded_and_agrees_with_scipy() -> None:
    from scipy.stats import bootstrap

    data = np.random.default_rng(3).lognormal(0.0, 1.0, 120)
    ours = bootstrap_mean(data)
    assert ours.interval() == bootstrap_mean(data).interval()
    theirs = bootstrap((data,), np.mean, method="BCa", n_resamples=9999, rng=np.random.default_rng(1))
    assert ours.interval() == pytest.approx(tuple(theirs.confidence_interval), rel=0.03)
    low, high = ours.interval()
    assert high - ours.mean > ours.mean - low  # skewed data, skewed interval


def test_bootstrap_of_equal_values_is_a_point() -> None:
    result = bootstrap_mean(np.full(10, 2.5))
    assert result.interval() == (2.5, 2.5)
    assert bootstrap_mean(np.zeros(10)).p_of_zero() == 1.0


@pytest.mark.parametrize("bad", [np.array([]), np.array([1.0, np.nan]), np.ones((2, 2))])
def test_bootstrap_refuses_what_has_no_mean(bad: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="finite"):
        bootstrap_mean(bad)


def test_bootstrap_bound_covers_the_true_mean() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(300):
        sample = generator.gamma(2.0, 1.0, 200) - 2.0
        covered += bootstrap_mean(sample, resamples=1000).quantile(0.95) >= 0.0
    assert 0.91 <= covered / 300 <= 0.99


def test_large_samples_are_resampled_in_chunks() -> None:
    data = np.random.default_rng(0).normal(1.0, 1.0, 30_000)
    low, high = bootstrap_mean(data, resamples=400).interval()
    assert low < data.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(30_000), rel=0.15)


def test_intervals_of_a_metric() -> None:
    right = summarise_pairs(np.r_[np.ones(95), np.zeros(5)], name="accuracy", better="higher")
    assert right.value == 0.95 and right.interval == pytest.approx((0.8882, 0.9785), abs=1e-4)
    error = summarise_pairs(np.random.default_rng(0).gamma(2.0, 1.0, 100), name="mse", better="lower")
    assert error.interval[0] < error.value < error.interval[1]


def test_builtin_scores_are_the_workloads_defaults() -> None:
    assert (workload.ACCURACY.per_sample, workload.SQUARED_ERROR.per_sample) == (accuracy_scores, squared_error_scores)
    generator = np.random.default_rng(0)
    logits, classes = generator.normal(size=(50, 4)).astype(np.float32), generator.integers(0, 4, 50)
    assert (builtin_scores("accuracy", logits, classes) == accuracy_scores(logits, classes)).all()
    outputs, targets = generator.normal(size=(50, 1)).astype(np.float32), generator.normal(size=50)
    assert (builtin_scores("mse", outputs, targets) == squared_error_scores(outputs, targets)).all()
    assert torch.nn.functional.mse_loss(torch.tensor(outputs[:, 0]), torch.tensor(targets)).item() == pytest.approx(
        squared_error_scores(outputs, targets).mean(), rel=1e-5
    )
    assert is_classifier(logits, classes) and not is_classifier(outputs, targets)


def test_pareto_front() -> None:
    points = [(0.1, 2.0, 10.0), (0.2, 1.0, 5.0), (0.2, 1.5, 5.0), (0.1, 2.0, 10.0), (0.05, 9.0, 99.0)]
    assert front(points) == (True, True, False, True, True)
    assert front([]) == ()


@pytest.mark.parametrize("losses", list(CASES))
@pytest.mark.parametrize("samples", [100, 300])
def test_the_bound_of_a_mean_holds_for_skewed_and_rare_losses(losses: str, samples: int) -> None:
    held, above = coverage(losses, samples, 400, "ours")
    assert held >= 0.95 - 2.6 * (0.05 * 0.95 / 400) ** 0.5, "three standard errors"
    assert above < (10.0 if "sigma" in losses or "others 0" in losses else 2.4), (
        "and is no further away than it must be"
    )


def test_a_large_loss_that_no_sample_shows_is_reckoned_with() -> None:
    """All answers alike: a bound of 0 would say that no loss is possible."""
    scores = np.linspace(0.2, 0.9, 100)
    same = compare_paired(scores, scores, better="higher", reference=DIGEST)
    assert 0.7 / 100 < same.bound < 0.1
    assert mean_bound(np.full(100, 2.0), unseen=2.0) == 2.0


def test_what_is_lost_at_least_mirrors_what_is_lost_at_most() -> None:
    assert loss_shown(0, 10, 100) == pytest.approx(0.0611, abs=0.002)  # 10 of 100
    assert loss_shown(10, 0, 100) == -loss_bound(0, 10, 100)
    assert loss_shown(3, 3, 50) < 0 < loss_bound(3, 3, 50)
