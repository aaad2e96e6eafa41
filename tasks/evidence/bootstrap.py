"""Bootstrap of a mean, for scores that are not just right or wrong."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_CHUNK = 2_000_000  # resampled values held at once
_NORMAL = NormalDist()


@dataclass(frozen=True)
class MeanBootstrap:
    """The sorted means of the resamples, with the two corrections of BCa (Efron 1987, JASA 82:171)."""

    mean: float
    means: Floats
    bias: float
    acceleration: float

    def quantile(self, share: float) -> float:
        """Upper end of the one-sided interval at this level: 0.95 gives the one-sided 95 % upper bound."""
        if self.means[0] == self.means[-1]:  # all samples equal
            return self.mean
        z = self.bias + _NORMAL.inv_cdf(share)
        adjusted = _NORMAL.cdf(self.bias + z / (1 - self.acceleration * z))
        return float(np.quantile(self.means, adjusted))

    def interval(self) -> tuple[float, float]:
        """Two-sided 95 % interval of the mean."""
        return self.quantile(0.025), self.quantile(0.975)

    def p_of_zero(self) -> float:
        """Two-sided p of 'the mean is zero': the smallest share at which a percentile interval leaves zero out.

        Never below 2 / (resamples + 1), what the number of resamples can tell.
        """
        below, above = int((self.means <= 0).sum()), int((self.means >= 0).sum())
        return min(1.0, 2 * (min(below, above) + 1) / (len(self.means) + 1))


def bootstrap_mean(values: NDArray[np.floating], *, resamples: int = 4000, seed: int = 0) -> MeanBootstrap:
    """Resample the mean of the values, seeded: the same values give the same interval.

    Args:
        values: shape [n], n >= 1, finite.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or len(data) == 0 or not np.isfinite(data).all():
        raise ValueError(f"bootstrap needs a flat, finite, non-empty array; this one has shape {data.shape}")
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(data))
    means = np.concatenate(
        [
            data[generator.integers(0, len(data), size=(min(rows, resamples - start), len(data)))].mean(axis=1)
            for start in range(0, resamples, rows)
        ]
    )
    means.sort()
    mean = float(data.mean())
    centred = data - mean
    spread = float((centred**2).sum())
    # For a mean the jackknife has a closed form; half of the ties count as below.
    below = (float((means < mean).sum()) + 0.5 * float((means == mean).sum())) / resamples
    bias = _NORMAL.inv_cdf(min(max(below, 1 / (resamples + 1)), resamples / (resamples + 1)))
    acceleration = float((centred**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    return MeanBootstrap(mean, means, bias, acceleration)
