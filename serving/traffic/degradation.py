"""When a model has more to do than it can, its cheaper variants answer: sooner than a refusal, and not for longer than
needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from serving.traffic.variant_choice import SetVariant

WAIT_SECONDS = 0.1
"""Expected wait from which on a cheaper variant takes over."""
FULL = 0.5
"""Share of the requests that may wait, with the same effect."""
CALM_SECONDS = 2.0
"""How long the better variant must have been able to do all of it before it gets it back."""
CALM_LOAD = 0.7
"""Share of its capacity up to which it is said to be able to."""
_SETTLE_SECONDS = 0.1
"""After a step down the next one is not taken before this one can have shown anything."""


class Degradation:
    """The ladder of a model: the variant that has its traffic, and below it those that are cheaper, in their order.

    A step down is taken at once when too long a wait is expected; a step up only after the better variant could for
    some time have answered all that came, which is told from what came and from what one request costs it. So the
    level does not swing with the queue that it empties.

    Attributes:
        level: 0: the variant with the traffic answers.
    """

    def __init__(self, ladder: Sequence[SetVariant], clock: Callable[[], float] = time.monotonic) -> None:
        self.ladder, self._clock = tuple(ladder), clock
        self.level = 0
        self._stepped = self._counted_since = clock()
        self._calm_since: float | None = None
        self._came = 0

    def member(self) -> SetVariant:
        """The variant that answers the next request which leaves the choice to us."""
        self._came += 1
        present = self.ladder[self.level]
        if self.level + 1 < len(self.ladder) and _pressed(present):
            now, helpless = self._clock(), present.loaded.pace.fullness >= 1 or present.loaded.state != "ready"
            below = [n for n in range(self.level + 1, len(self.ladder)) if self.ladder[n].loaded.state == "ready"]
            if below and (helpless or not self.level or now - self._stepped > _SETTLE_SECONDS):
                self._step(below[0], now)
        return self.ladder[self.level]

    def sweep(self) -> None:
        """See whether a better variant can take over again; called about twice a second."""
        now = self._clock()
        seconds, came = now - self._counted_since, self._came
        self._counted_since, self._came = now, 0
        if not self.level or seconds <= 0:
            return
        better = self.ladder[self.level - 1].loaded
        pace = better.pace
        busy = pace.wait_seconds > WAIT_SECONDS / 2 or pace.fullness > FULL / 2
        if came / seconds * pace.request_seconds > CALM_LOAD or busy or better.state != "ready":
            self._calm_since = None
        elif self._calm_since is None:
            self._calm_since = now
        elif now - self._calm_since >= CALM_SECONDS:
            self._step(self.level - 1, now)

    def _step(self, level: int, now: float) -> None:
        self.level, self._stepped, self._calm_since = level, now, None


def _pressed(member: SetVariant) -> bool:
    pace = member.loaded.pace
    return pace.wait_seconds > WAIT_SECONDS or pace.fullness > FULL or member.loaded.state != "ready"


def ladder_of(members: Sequence[SetVariant], serving: str) -> list[SetVariant]:
    """The variant with the traffic and those that are faster, each faster than the one before it."""
    top = next(member for member in members if member.loaded.version == serving)
    faster = sorted((m for m in members if m.latency_ms < top.latency_ms), key=lambda m: -m.latency_ms)
    return [top, *faster]
