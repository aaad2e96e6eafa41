"""What decides about the requests of one model, where there is something to decide: a set, a load, a trial."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from serving.exceptions import InvalidRequest
from serving.loaded_version import LoadedVersion
from serving.traffic.degradation import Degradation, ladder_of
from serving.traffic.trial import Trial
from serving.traffic.variant_choice import SetVariant, choose_variant
from serving.wishes import Wishes

DEGRADED = "degraded"


class Chosen(NamedTuple):
    """The version that answers a request; ``why``: that is said to the client, empty where it is the one with the
    traffic; ``trial``: is to be told of the answer, ``mirrored``: which the version on trial is to give too;
    ``instead``: is asked where this one, which is on trial, cannot answer."""

    version: LoadedVersion
    why: str = ""
    trial: Trial | None = None
    mirrored: bool = False
    instead: LoadedVersion | None = None


class Steering:
    """Of one model.

    Attributes:
        members: the set, empty for none.
        trial: of a new version, None for none.
        degraded: requests that a cheaper variant answered, by its version.
        ended: trials that are over, by how.
    """

    def __init__(self) -> None:
        self.members: tuple[SetVariant, ...] = ()
        self.trial: Trial | None = None
        self.degraded, self.ended = Counter[str](), Counter[str]()
        self._degradation: Degradation | None = None
        self._serving: str | None = None

    @property
    def active(self) -> bool:
        """Whether there is anything to decide."""
        return bool(self.members) or self.trial is not None

    def set_members(self, members: Sequence[SetVariant], serving: str | None) -> None:
        """Serve these beside each other; ``serving`` has the traffic. Without it among them there is no set."""
        known = {member.loaded.version for member in members}
        self.members = tuple(members) if serving in known else ()
        self._degradation, self._serving = None, serving
        if self.members and serving is not None and len(ladder := ladder_of(self.members, serving)) > 1:
            self._degradation = Degradation(ladder)

    @property
    def level(self) -> int:
        """0: nothing is degraded."""
        return 0 if self._degradation is None else self._degradation.level

    def choose(
        self,
        serving: LoadedVersion,
        versions: Mapping[str, LoadedVersion],
        wishes: Wishes | None,
        *,
        named: bool,
        exact: bool,
    ) -> Chosen:
        """The version for a request.

        Args:
            serving: the version with the traffic, or the one that is named.
            versions: all that are loaded.
            named: whether the request's path names the version.
            exact: whoever asks takes no cheaper one.

        Raises:
            InvalidRequest, NotReady, Overloaded: see :func:`choose_variant`.
        """
        if wishes is not None:
            if not self.members:
                raise InvalidRequest(
                    f"nothing is known of the accuracy and the latency of model {serving.model!r}, so that "
                    "min_accuracy, max_latency_ms and variant cannot be honoured; leave them out"
                )
            able = [member for member in self.members if not named or member.loaded is serving]
            found = choose_variant(able, wishes)
            return Chosen(_as_loaded(found), "asked")
        if named:
            return Chosen(serving)
        trial = self.trial
        if trial is not None and not trial.over and trial.new != serving.version:
            candidate = versions.get(trial.new)
            if candidate is not None and candidate.state == "ready":
                if trial.takes():
                    return Chosen(candidate, "canary", trial, instead=serving)
                return Chosen(serving, "", trial, trial.mirrors())
        if self._degradation is not None and not exact:
            found = self._degradation.member()
            if found.loaded is not serving:
                self.degraded[found.loaded.version] += 1
                return Chosen(_as_loaded(found), DEGRADED)
        return Chosen(serving)

    def sweep(self) -> None:
        """Called about twice a second."""
        if self._degradation is not None:
            self._degradation.sweep()
        trial = self.trial
        if trial is not None:
            trial.sweep()
            if trial.over and not trial.counted:
                self.end(trial.state)

    def end(self, how: str) -> None:
        """Count the trial as over, once."""
        if self.trial is not None and not self.trial.counted:
            self.trial.counted = True
            self.ended[how] += 1

    def routed(self, version: str | None, *, moved: bool) -> None:
        """All of the traffic is this version's; ``moved``: it was not before."""
        trial = self.trial
        if trial is None:
            return
        if version == trial.new and trial.state == "passed":
            self.end("promoted")
            self.trial = None
        elif moved and trial.over:
            self.end(trial.state)
            self.trial = None
        elif moved:  # by hand: kept, since whoever rolls it out is to hear of it
            mine = version == trial.new
            trial.act(
                "promote" if mine else "abort",
                f"version {version} was given the traffic by hand" if version else "the traffic was taken away by hand",
            )
            self.end("promoted" if mine else "aborted")

    def without(self, version: str) -> None:
        """A version is taken away."""
        if self.trial is not None and self.trial.new == version:
            self.end(self.trial.state if self.trial.over else "aborted")
            self.trial = None
        if any(member.loaded.version == version for member in self.members):
            self.set_members([member for member in self.members if member.loaded.version != version], self._serving)

    def needs(self, version: str) -> bool:
        """Whether the version is of the set, or on trial."""
        on_trial = self.trial is not None and self.trial.new == version
        return on_trial or any(member.loaded.version == version for member in self.members)

    def describe(self) -> dict[str, Any]:
        """For the admin listener."""
        return {
            "set": [
                {
                    "version": member.loaded.version,
                    "name": member.name,
                    "metric": member.metric,
                    "value": member.accuracy,
                    "better": "higher" if member.higher else "lower",
                    "latency_ms": round(member.alone_ms, 4),
                    "degraded_requests": self.degraded.get(member.loaded.version, 0),
                }
                for member in self.members
            ],
            "degraded": self.level,
            "rollout": None if self.trial is None else self.trial.describe(),
        }


def _as_loaded(member: SetVariant) -> LoadedVersion:
    loaded = member.loaded
    assert isinstance(loaded, LoadedVersion)
    loaded.widen()
    return loaded
