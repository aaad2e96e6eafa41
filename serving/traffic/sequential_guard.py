"""A limit on a share that may be looked at after every request: it stops too soon with a known, small chance."""

from __future__ import annotations

import math

_STEPS = (0.02, 0.05, 0.1, 0.2, 0.4)
"""How far above the limit the shares lie that are tested for, as shares of what is left up to 1."""


class SequentialGuard:
    """Tests whether failures are at most a share ``limit`` of all trials.

    The likelihood of what was seen under higher shares, averaged over some, divided by that under the limit, is a test
    martingale where the true share is the limit and shrinks on average where it is lower. By Ville's inequality it
    ever reaches 1 / ``alpha`` with a chance of at most ``alpha`` (Wald 1945; Robbins 1970; Ramdas et al. 2023,
    section 3).

    Args:
        limit: share of failures that is accepted, between 0 and 1.
        alpha: chance of a false alarm, over any number of trials.
    """

    def __init__(self, limit: float, alpha: float) -> None:
        self.limit, self._needed = limit, -math.log(alpha)
        self.trials = self.failures = 0
        self._tripped = False
        self._odds = [
            (math.log(share / limit), math.log((1 - share) / (1 - limit)))
            for share in (limit + step * (1 - limit) for step in _STEPS)
        ]

    def add(self, trials: int, failures: int) -> None:
        """Count some more."""
        self.trials += trials
        self.failures += failures
        good, bad = self.trials - self.failures, self.failures
        logs = [bad * fail + good * pass_ for fail, pass_ in self._odds]
        most = max(logs)
        evidence = most + math.log(sum(math.exp(log - most) for log in logs) / len(logs))
        self._tripped = self._tripped or evidence >= self._needed

    @property
    def tripped(self) -> bool:
        """Whether the limit was shown to be exceeded, once and for good."""
        return self._tripped

    @property
    def share(self) -> float:
        """Of failures; 0 before anything was seen."""
        return self.failures / self.trials if self.trials else 0.0
