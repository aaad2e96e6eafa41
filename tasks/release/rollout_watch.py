"""A roll-out from outside the endpoint: begun, renewed, followed to its end, and told to the ledger.

The endpoint counts, compares, goes from step to step and stops what does harm; it does so for as long as it hears from
us. Where it was started again in between it knows nothing of the roll-out: then that begins again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from model_registry.endpoint_client import Endpoint, EndpointRefused, EndpointUnreachable
from model_registry.endpoint_rollout import EndpointRollout, RolloutState
from model_registry.rollout_plan import RolloutPlan
from tasks.running.errors import EndpointUnhealthy

RENEWAL_SECONDS = 1.0
_AWAY_SECONDS = 120.0
"""How long an endpoint may be away in the middle of a roll-out."""
Report = Callable[[str, str], None]


class RolloutWatch:
    """One roll-out of a version that is loaded; ``still_ours`` is called all the time, and raises to end it."""

    def __init__(
        self, endpoint: Endpoint, model: str, version: int, plan: RolloutPlan, still_ours: Callable[[], None]
    ) -> None:
        self._rollout, self._version, self._plan = EndpointRollout(endpoint, model), version, plan
        self._still_ours = still_ours

    def follow(self, prepare: Callable[[], None], report: Report) -> None:
        """Return once the version may have all of the traffic.

        Args:
            prepare: sees that the version is loaded; called again where the endpoint lost it.
            report: is told of each step, with what was seen until then.

        Raises:
            EndpointUnhealthy: it was stopped, by a limit or a person; says why.
            EndpointError: the endpoint refuses, or is away for too long.
        """
        state = self._begin(prepare)
        reported = -1
        while True:
            if state.step > reported:
                report(state.steps[state.step], state.seen if state.step else "")
                reported = state.step
            if not state.going:
                break
            time.sleep(RENEWAL_SECONDS)
            self._still_ours()
            state, known = self._renew(prepare)
            reported = reported if known else -1
        report("tried" if state.state == "passed" else state.state, "; ".join(filter(None, (state.why, state.seen))))
        if state.state != "passed":
            raise EndpointUnhealthy(
                f"the roll-out {_SAID.get(state.state, state.state)} in step {state.steps[state.step]!r} after "
                f"{state.seconds:.0f} s: {state.why} ({state.seen})"
            )

    def _begin(self, prepare: Callable[[], None]) -> RolloutState:
        prepare()
        return self._rollout.begin(self._version, self._plan)

    def _renew(self, prepare: Callable[[], None]) -> tuple[RolloutState, bool]:
        """What became of it, and whether the endpoint still knew of it."""
        deadline = time.monotonic() + _AWAY_SECONDS
        while True:
            try:
                found = self._rollout.act("renew")
                if found is not None and found.version == self._version:
                    return found, True
                return self._begin(prepare), False
            except (EndpointUnreachable, EndpointRefused) as error:  # it starts, or its champion is not loaded yet
                hopeless = isinstance(error, EndpointRefused) and not error.may_pass
                if hopeless or time.monotonic() > deadline:
                    raise
                time.sleep(RENEWAL_SECONDS)


_SAID = {"failed": "was stopped", "aborted": "was ended by hand", "abandoned": "was not renewed"}
