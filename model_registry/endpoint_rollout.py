"""A roll-out as the endpoint has it: begun, looked at, ended by its admin listener."""

from __future__ import annotations

from model_registry.endpoint_client import AdminAnswer, Endpoint, EndpointRefused
from model_registry.rollout_plan import RolloutAction, RolloutPlan


class RolloutState(AdminAnswer):
    """A version on trial. Counts: rows ``compared`` and those that ``differ``, requests that the new version
    ``answered``, those of them that ``failed`` or were ``slow``."""

    version: int
    old: int
    state: str
    why: str
    step: int
    steps: tuple[str, ...]
    step_seconds: float
    seconds: float
    compared: int
    differ: int
    largest_difference: float
    answered: int
    failed: int
    slow: int

    @property
    def going(self) -> bool:
        """Whether it is under way."""
        return self.state in ("running", "paused")

    @property
    def seen(self) -> str:
        """What was seen so far, for people."""
        parts = [f"{self.answered} answers", f"{self.failed} failed", f"{self.slow} slow"]
        if self.compared:
            parts.append(f"{self.differ} of {self.compared} rows answered differently")
        return ", ".join(parts)


class EndpointRollout:
    """Of one model."""

    def __init__(self, endpoint: Endpoint, model: str) -> None:
        self._endpoint, self._path = endpoint, f"/admin/models/{model}/rollout"

    def begin(self, version: int, plan: RolloutPlan) -> RolloutState:
        """Try a loaded version beside the serving one; the same again goes on with it."""
        asked = {"version": version, "plan": plan.model_dump(mode="json")}
        return RolloutState.model_validate(self._endpoint.admin_call("PUT", self._path, asked))

    def state(self) -> RolloutState | None:
        """What became of it; None where nothing is being rolled out."""
        return self._found("GET")

    def act(self, action: RolloutAction) -> RolloutState | None:
        """What became of it after doing that; None where nothing is being rolled out.

        Raises:
            EndpointRefused: it is over, and nothing can be done any more.
        """
        return self._found("POST", {"action": action})

    def _found(self, method: str, body: dict[str, str] | None = None) -> RolloutState | None:
        try:
            return RolloutState.model_validate(self._endpoint.admin_call(method, self._path, body))
        except EndpointRefused as error:
            if error.status == 404:
                return None
            raise
