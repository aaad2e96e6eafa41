"""Statistics of right and wrong answers: one proportion, and two proportions on the same samples.

Written out, since importing scipy.stats costs every process that compares 0.6 s of CPU; the tests hold them against it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

Z_TWO_SIDED = NormalDist().inv_cdf(0.975)
Z_ONE_SIDED = NormalDist().inv_cdf(0.95)
_ALPHA = 0.05


def wilson(successes: int, samples: int, z: float = Z_TWO_SIDED) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927; Brown, Cai, DasGupta 2001), 95 % by default.

    Never empty at 0 or 1, unlike the normal interval. ValueError for counts that cannot be.
    """
    if not 0 <= successes <= samples or samples < 1:
        raise ValueError(f"wilson({successes} of {samples}): needs at least one sample and 0 <= successes <= samples")
    share = successes / samples
    centre = (share + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z / (1 + z * z / samples) * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples**2))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == samples else min(1.0, centre + half)
    return low, high


def mcnemar_p(better: int, worse: int) -> float:
    """Two-sided exact p of McNemar's test: are flips in both directions equally likely? (McNemar 1947, exact binomial).

    1.0 where nothing flipped.
    """
    flips = better + worse
    tail = 0.0
    for k in range(min(better, worse) + 1):
        tail += math.exp(math.lgamma(flips + 1) - math.lgamma(k + 1) - math.lgamma(flips - k + 1) - flips * math.log(2))
    return min(1.0, 2 * tail)


def paired_interval(better: int, worse: int, samples: int, z: float = Z_TWO_SIDED) -> tuple[float, float]:
    """Score interval of (share better - share worse) on the same samples (Tango 1998, Statistics in Medicine 17:891).

    Two-sided 95 % by default. It keeps its coverage with few flips, where Wald's interval is far too short.
    """
    _check(better, worse, samples)
    return -_tango_upper(worse, better, samples, z), _tango_upper(better, worse, samples, z)


def loss_bound(better: int, worse: int, samples: int) -> float:
    """One-sided 95 % upper bound of the loss (share worse - share better): non-inferior within any margin above it.

    Tango's score bound. With no flip at all the score bound z^2/(n+z^2) is optimistic (coverage below 95 %), so the
    exact bound of a proportion never seen in n samples is taken: 1 - 0.05^(1/n) (Clopper and Pearson 1934), the
    "rule of three".
    """
    _check(better, worse, samples)
    if better + worse == 0:
        return float(1.0 - _ALPHA ** (1.0 / samples))
    return _tango_upper(worse, better, samples, Z_ONE_SIDED)


def loss_shown(better: int, worse: int, samples: int, z: float = Z_ONE_SIDED) -> float:
    """One-sided lower bound of the loss: so much is lost at least, by Tango's score bound; below 0 nothing is shown."""
    _check(better, worse, samples)
    return -_tango_upper(better, worse, samples, z)


def samples_needed(margin: float) -> int:
    """The smallest number of samples on which a variant with not a single flip is non-inferior within the margin.

    Below it even a variant that answers exactly like its reference is refused, so training would be wasted.
    In practice a few flips happen: plan for three to five times as many. ValueError unless 0 < margin < 1.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin {margin} must lie between 0 and 1, as a share: 0.02 is two points of accuracy")
    needed = math.ceil(math.log(_ALPHA) / math.log1p(-margin))
    while needed > 1 and loss_bound(0, 0, needed - 1) <= margin:  # the logarithms round
        needed -= 1
    while loss_bound(0, 0, needed) > margin:
        needed += 1
    return needed


def _check(better: int, worse: int, samples: int) -> None:
    if better < 0 or worse < 0 or better + worse > samples or samples < 1:
        raise ValueError(f"{better} better and {worse} worse of {samples} samples: counts must not exceed the samples")


def _tango_upper(up: int, down: int, samples: int, z: float) -> float:
    """The largest difference d = P(up) - P(down) that the score test at z does not reject."""

    def score(difference: float) -> float:
        """(seen - expected) / standard error, under the maximum likelihood estimate constrained to the difference."""
        b = -up - down + (2 * samples - up + down) * difference
        c = -down * difference * (1 - difference)
        q = (math.sqrt(max(0.0, b * b - 8 * samples * c)) - b) / (4 * samples)
        variance = samples * (2 * max(0.0, q) + difference * (1 - difference))
        gap = up - down - samples * difference
        return math.copysign(math.inf, gap) if variance <= 0 else gap / math.sqrt(variance)

    return _bisect(lambda d: score(d) + z, (up - down) / samples, 1.0)


def _bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """Root of a falling function that is positive at ``low``; ``high`` where it never turns negative."""
    for _ in range(60):
        middle = (low + high) / 2
        if function(middle) > 0:
            low = middle
        else:
            high = middle
    return high
