"""A new version beside the one that has the traffic: step by step, watched, and back at the first sign of harm.

Whoever rolls out renews the trial every few seconds. One that is not renewed ends: its process is dead, and what it
would have written into the ledger will never be. So a trial is never half of a release: either its owner gives the new
version all of the traffic, or the old one has it all again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from model_registry.rollout_plan import RolloutAction, RolloutPlan, RolloutStep
from serving.engines.engine_frames import CHOSEN, MAY_PACK, Answered
from serving.engines.infer_job import InferJob
from serving.exceptions import Conflict
from serving.traffic.sequential_guard import SequentialGuard

ABANDONED_SECONDS = 15.0
"""How long a trial lasts that nobody renews."""
_MOST_AGAIN = 10
"""Times a step's length that it waits for enough requests."""
_RECENT, _LEAST_RECENT = 512, 20
"""Requests of the old version whose 95th percentile is looked at, and how many there must be."""
_COMPARISONS_PER_SECOND = 50.0
"""At most: each is read in the front."""

State = Literal["running", "paused", "passed", "failed", "aborted", "abandoned"]


def is_refusal(status: int) -> bool:
    """Whether an answer says that the model cannot do this very request (4xx, 500, 501); another one might."""
    return 400 <= status <= 501


class Trial:
    """One version on trial.

    Args:
        old, new: version numbers.

    Attributes:
        state: ``passed`` keeps the last share of the traffic until its owner gives it all; of what is over otherwise
            the old version answers everything.
        why: it is not running, for people.
    """

    def __init__(self, plan: RolloutPlan, old: str, new: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.plan, self.old, self.new, self._clock = plan, old, new, clock
        self.state: State = "running"
        self.why = ""
        self.agreement = SequentialGuard(1 - plan.min_agreement, plan.false_alarm)
        self.errors = SequentialGuard(plan.max_errors, plan.false_alarm)
        self.slow = SequentialGuard(plan.max_slow, plan.false_alarm)
        self.largest_difference = 0.0
        self.refused = 0
        """Requests that it refused and the old version answered; among the errors."""
        self.counted = False
        """Whether its end is in the metrics."""
        self.step = 0
        self._steps = plan.steps
        self._began = self._ticked = self._renewed = clock()
        self._elapsed = 0.0
        self._answered_before = 0
        self._credit = 0.0
        self._next_pair = 0.0
        self._recent = deque[float](maxlen=_RECENT)
        self._sorted: list[float] = []

    # -- which version ----------------------------------------------------------------------------------------------
    @property
    def over(self) -> bool:
        """Whether the old version answers everything again."""
        return self.state in ("failed", "aborted", "abandoned")

    @property
    def present(self) -> RolloutStep:
        """The step that it is in, or was in last."""
        return self._steps[min(self.step, len(self._steps) - 1)]

    def takes(self) -> bool:
        """Whether the new version alone answers the next request: exactly a step's share of them."""
        return self.present.kind == "canary" and not self.over and self._due()

    def mirrors(self) -> bool:
        """Whether the next request is answered by both."""
        if self.present.kind != "shadow" or self.state != "running" or not self._due():
            return False
        now = self._clock()
        if now < self._next_pair:
            return False
        self._next_pair = now + 1 / _COMPARISONS_PER_SECOND
        return True

    def _due(self) -> bool:
        self._credit += self.present.share
        if self._credit < 1:
            return False
        self._credit -= 1
        return True

    # -- what was seen ----------------------------------------------------------------------------------------------
    def old_answered(self, status: int, seconds: float) -> None:
        """The old version answered a request."""
        if status == 200:
            self._recent.append(seconds)
            if len(self._recent) % 32 == _LEAST_RECENT:
                self._sorted = sorted(self._recent)

    def new_answered(self, status: int, seconds: float) -> None:
        """The new version answered a request, or was too late for it (504). That is its fault where it took longer
        than is slow: else the client's own time was too short."""
        known = self._sorted
        slow = seconds > self.plan.max_slowdown * known[min(int(0.95 * len(known)), len(known) - 1)] if known else False
        self.errors.add(1, status != 200 and slow)
        if status == 200 and known:
            self.slow.add(1, slow)
        self._check()

    def new_failed(self, status: int, old_status: int) -> None:
        """The new version has no answer to a request, the old one said ``old_status``: only an answer shows a fault."""
        answerable = old_status == 200
        self.refused += answerable and is_refusal(status)
        self.errors.add(1, answerable)
        self._check()

    def both_answered(self, old: Answered, new: Answered) -> None:
        """Both answered the same request."""
        if new.status != 200:
            self.new_failed(new.status, old.status)
        if old.status != 200 or new.status != 200:
            return
        # With numpy, which a front without a trial does without.
        from serving.traffic.answer_agreement import compare_answers

        found = compare_answers(old, new, self.plan.tolerance)
        if found is None:
            return
        if found.largest == found.largest:
            self.largest_difference = max(self.largest_difference, found.largest)
        self.agreement.add(found.rows, found.differ)
        self._check()

    def _check(self) -> None:
        if self.state not in ("running", "paused"):
            return
        plan = self.plan
        if self.agreement.tripped:
            most = f"{100 * (1 - plan.min_agreement):.3g} %"
            self._end("failed", f"{_of(self.agreement)} rows were answered differently; at most {most} may be")
        elif self.errors.tripped:
            refused = f" ({self.refused} refused that version {self.old} answers)" if self.refused else ""
            self._end("failed", f"{_of(self.errors)} requests failed{refused}; at most {100 * plan.max_errors:g} % may")
        elif self.slow.tripped:
            self._end(
                "failed",
                f"{_of(self.slow)} requests took more than {plan.max_slowdown:g} times the 95th percentile of "
                f"version {self.old}; at most {100 * plan.max_slow:g} % may",
            )

    # -- what becomes of it -----------------------------------------------------------------------------------------
    def act(self, action: RolloutAction, why: str = "somebody said so") -> None:
        """Do what its owner, or a person, says.

        Raises:
            Conflict: it is over, or has passed and can only be aborted.
        """
        if action == "renew":
            self._renewed = self._clock()
            return
        if self.over or (self.state == "passed" and action != "abort"):
            said = f" ({self.why})" if self.why else ""
            raise Conflict(f"the roll-out of version {self.new} is over: {self.state}{said}")
        if action == "pause":
            self.state = "paused"
        elif action == "resume":
            self.state = "running"
        elif action == "promote":
            self._end("passed", why)
        else:
            self._end("aborted", why)

    def sweep(self) -> None:
        """Go to the next step where this one is done; called about twice a second."""
        now = self._clock()
        passed, self._ticked = now - self._ticked, now
        if self.over:
            return
        if now - self._renewed > ABANDONED_SECONDS:
            self._end(
                "abandoned", f"nobody has asked for it for {ABANDONED_SECONDS:g} s: whoever rolled it out is gone"
            )
            return
        if self.state != "running":
            return
        self._elapsed += passed
        step, seen = self.present, self.errors.trials - self._answered_before
        if self._elapsed < step.seconds:
            return
        if seen < self.plan.min_requests and self._elapsed < _MOST_AGAIN * step.seconds:
            return
        if self.step + 1 < len(self._steps):
            self.step += 1
            self._elapsed, self._credit, self._answered_before = 0.0, 0.0, self.errors.trials
        else:
            self._end("passed", "")

    def _end(self, state: State, why: str) -> None:
        self.state, self.why = state, why

    def describe(self) -> dict[str, Any]:
        """For the admin listener."""
        return {
            "version": self.new,
            "old": self.old,
            "state": self.state,
            "why": self.why,
            "step": self.step,
            "steps": [str(step) for step in self._steps],
            "step_seconds": round(self._elapsed, 1),
            "seconds": round(self._clock() - self._began, 1),
            "compared": self.agreement.trials,
            "differ": self.agreement.failures,
            "largest_difference": self.largest_difference,
            "answered": self.errors.trials,
            "failed": self.errors.failures,
            "slow": self.slow.failures,
            "plan": self.plan.model_dump(mode="json"),
        }


def _of(guard: SequentialGuard) -> str:
    return f"{guard.failures} of {guard.trials}"


class MirroredPair:
    """The two answers to one request; compared when both are there."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._old: Answered | None = None
        self._new: Answered | None = None

    def take_old(self, answered: Answered) -> None:
        self._old = answered
        self._compare()

    def take_new(self, answered: Answered) -> None:
        self._new = answered
        self._compare()

    def _compare(self) -> None:
        if self._old is not None and self._new is not None:
            self._trial.both_answered(self._old, self._new)


class ShadowJob(InferJob):
    """A request that the new version answers too; nobody waits for it."""

    __slots__ = ("_pair", "_trial")

    def __init__(self, first: InferJob, trial: Trial, pair: MirroredPair, *, began: float) -> None:
        super().__init__(first.body, first.json_bytes, (first.packing & ~MAY_PACK) | CHOSEN, began=began)
        self._trial, self._pair = trial, pair

    def deliver(self, answered: Answered) -> None:
        if answered.status == 200:
            self._trial.new_answered(200, time.monotonic() - self.began)
        self._pair.take_new(answered)
