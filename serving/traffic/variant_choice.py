"""The variants of a model that are served beside each other, and which of them answers a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from serving.engines.lane_pace import LanePace
from serving.exceptions import InvalidRequest, NotReady, Overloaded
from serving.wishes import Wishes

_LEAST_DIGITS = 8


class Answering(Protocol):
    """A loaded version, as far as a choice depends on it."""

    @property
    def version(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def state(self) -> str: ...

    @property
    def pace(self) -> LanePace: ...


class SetVariant(NamedTuple):
    """A variant with what was measured of it.

    ``accuracy``: value of the metric named ``metric``, of which more is better where ``higher``; ``latency_ms``: median
    of a single request where it was measured, which counts until it has answered some here.
    """

    loaded: Answering
    name: str
    metric: str
    higher: bool
    accuracy: float
    latency_ms: float

    @property
    def alone_ms(self) -> float:
        """What a request takes where none is before it."""
        return 1e3 * self.loaded.pace.quiet_seconds or self.latency_ms

    @property
    def expected_ms(self) -> float:
        """What a request takes now."""
        return self.alone_ms + 1e3 * self.loaded.pace.wait_seconds

    @property
    def quality(self) -> float:
        """Greater is better."""
        return self.accuracy if self.higher else -self.accuracy


def choose_variant(members: Sequence[SetVariant], wishes: Wishes) -> SetVariant:
    """The variant for a request with wishes: the most accurate that is expected to be in time, and without a limit on
    time the fastest that is accurate enough.

    Raises:
        InvalidRequest: no variant could ever fulfil the wishes; says what there is.
        NotReady, Overloaded: not now.
    """
    if not members:
        raise InvalidRequest("nothing was measured of this version; leave out min_accuracy, max_latency_ms and variant")
    able = _named(members, wishes.variant) if wishes.variant is not None else list(members)
    if wishes.min_accuracy is not None:
        able = _accurate(able, wishes.min_accuracy)
    ready = [member for member in able if member.loaded.state == "ready"]
    if not ready:
        raise NotReady(f"the variants that fit the request are not ready: {_list(able)}; try again")
    limit = wishes.max_latency_ms
    if limit is None:
        return min(ready, key=lambda member: member.alone_ms)
    in_time = [member for member in ready if member.expected_ms <= limit]
    if in_time:
        return max(in_time, key=lambda member: (member.quality, -member.expected_ms))
    best = min(ready, key=lambda member: member.alone_ms)
    if best.alone_ms > limit:
        raise InvalidRequest(
            f"no variant that fits the request answers within {limit:g} ms: version {best.loaded.version} takes "
            f"{best.alone_ms:.3g} ms; ask for more time or less accuracy"
        )
    raise Overloaded(f"no variant is expected to answer within {limit:g} ms now; try again later")


def _named(members: Sequence[SetVariant], variant: str) -> list[SetVariant]:
    found = [
        member
        for member in members
        if variant in (member.loaded.version, member.name)
        or (len(variant) >= _LEAST_DIGITS and member.loaded.digest.startswith(variant))
    ]
    if not found:
        raise InvalidRequest(f"there is no variant {variant[:80]!r} here; there are {_list(members)}")
    return found


def _accurate(members: Sequence[SetVariant], least: float) -> list[SetVariant]:
    wrong = next((member.metric for member in members if not member.higher), None)
    if wrong is not None:
        raise InvalidRequest(
            f"min_accuracy is for metrics of which more is better, and this model has {wrong}; name a variant"
        )
    found = [member for member in members if member.accuracy >= least]
    if not found:
        best = max(members, key=lambda member: member.accuracy)
        raise InvalidRequest(
            f"no variant reaches {best.metric} {least:g}; the best that fits the request, version "
            f"{best.loaded.version}, has {best.accuracy:.6g}"
        )
    return found


def _list(members: Sequence[SetVariant]) -> str:
    return ", ".join(f"{member.name} (version {member.loaded.version})" for member in members)
