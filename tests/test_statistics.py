"""The statistics of right and wrong answers, against published values and by simulation."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.evidence.proportion import loss_bound, mcnemar_p, paired_interval, samples_needed, wilson


def test_wilson_agrees_with_newcombe_1998() -> None:
    """Newcombe (1998, Statistics in Medicine 17:857), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for successes, samples, expected in (
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ):
        assert wilson(successes, samples) == pytest.approx(expected, abs=5e-5)


def test_wilson_refuses_impossible_counts() -> None:
    with pytest.raises(ValueError, match="11 of 10"):
        wilson(11, 10)


def test_mcnemar_is_the_exact_sign_test() -> None:
    assert mcnemar_p(0, 0) == 1.0
    assert mcnemar_p(5, 0) == pytest.approx(2 / 2**5)
    assert mcnemar_p(1, 7) == pytest.approx(2 * (1 + 8) / 2**8)  # Bentur et al. 2009: p = 0.0703
    assert mcnemar_p(10, 25) == mcnemar_p(25, 10)
    assert mcnemar_p(4000, 4300) == pytest.approx(0.00103, rel=0.01)  # large counts neither overflow nor take long


@settings(max_examples=60)
@given(st.integers(1, 3000), st.data())
def test_wilson_and_mcnemar_are_scipy_s(samples: int, data: st.DataObject) -> None:
    """Written out here because importing scipy.stats would cost each stage 0.6 s of CPU."""
    from scipy.stats import binomtest

    successes = data.draw(st.integers(0, samples))
    theirs = binomtest(successes, samples)
    assert wilson(successes, samples) == pytest.approx(tuple(theirs.proportion_ci(method="wilson")), abs=1e-12)
    assert mcnemar_p(successes, samples - successes) == pytest.approx(theirs.pvalue, rel=1e-9, abs=1e-300)


def test_tango_agrees_with_fagerland_2014() -> None:
    """Fagerland, Lydersen, Laake (2014, Statistics in Medicine 33:2850), airway data: (-0.517, -0.026)."""
    low, high = paired_interval(better=1, worse=7, samples=21)
    assert (low, high) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_without_flips_the_bound_is_the_exact_one() -> None:
    assert loss_bound(0, 0, 360) == pytest.approx(1 - 0.05 ** (1 / 360))
    assert loss_bound(0, 0, 360) == pytest.approx(0.0083, abs=5e-5)


def test_samples_needed_is_the_smallest_number_that_can_pass() -> None:
    assert samples_needed(0.005) == 598
    for margin in (0.02, 0.005, 0.001, 0.3):
        n = samples_needed(margin)
        assert loss_bound(0, 0, n) <= margin
        assert n == 1 or loss_bound(0, 0, n - 1) > margin
    with pytest.raises(ValueError, match="two points"):
        samples_needed(2)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 2000), st.data())
def test_bounds_are_ordered(samples: int, data: st.DataObject) -> None:
    better = data.draw(st.integers(0, samples))
    worse = data.draw(st.integers(0, samples - better))
    low, high = paired_interval(better, worse, samples)
    difference = (better - worse) / samples
    bound = loss_bound(better, worse, samples)
    assert -1 <= low <= difference + 1e-12 and difference - 1e-12 <= high <= 1
    assert -difference - 1e-12 <= bound <= 1
    assert bound <= -low + 1e-12 or better + worse == 0  # one-sided 95 % is inside two-sided 95 %
    if worse < samples - better:
        assert loss_bound(better, worse + 1, samples) > bound or better + worse == 0  # another loss never helps


@pytest.mark.parametrize(("lost", "won"), [(0.02, 0.0), (0.02, 0.01), (0.05, 0.05), (0.03, 0.01)])
def test_the_loss_bound_covers_the_true_loss(lost: float, won: float) -> None:
    """In 95 % of repeated test sets of 360 samples the bound must lie above the true loss (1.5 points of slack)."""
    covered, runs, samples = 0, 4000, 360
    generator = np.random.default_rng(1)
    draws = generator.multinomial(samples, [won, lost, 1 - won - lost], size=runs)
    bound = cache(lambda up, down: loss_bound(up, down, samples))
    for up, down, _ in draws:
        covered += bound(int(up), int(down)) >= lost - won
    assert covered / runs >= 0.935
    assert covered / runs <= 0.995  # and it is no trivial bound


def test_the_score_bound_alone_would_be_too_short_without_flips() -> None:
    """Why the exact bound is taken there: a loss just above the score bound shows no flip in more than 5 % of sets."""
    z = 1.6448536
    score_only = z * z / (360 + z * z)
    assert (1 - score_only) ** 360 > 0.05
    assert (1 - loss_bound(0, 0, 360)) ** 360 == pytest.approx(0.05)
    assert math.isclose(score_only, 0.00746, abs_tol=1e-5)
