"""How a new version takes over the traffic step by step, and what stops it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from model_registry.variant import Frozen

RolloutAction = Literal["pause", "resume", "promote", "abort", "renew"]
"""What can be done to a roll-out; ``renew``: it goes on, says whoever it belongs to."""
Share = Annotated[float, Field(gt=0, lt=1)]


class RolloutPlan(Frozen):
    """First a part of the requests is answered twice and the answers are compared, then growing shares of the requests
    are answered by the new version alone, then all of them."""

    shadow_seconds: float = Field(
        default=30.0, ge=0, description="how long requests are answered twice, in seconds; 0: not at all"
    )
    shadow_share: float = Field(default=0.2, gt=0, le=1, description="share of the requests that are answered twice")
    canary: tuple[Share, ...] = Field(
        default=(0.05, 0.25),
        max_length=20,
        description="shares of the requests that the new version answers, one step each",
    )
    step_seconds: float = Field(default=30.0, gt=0, description="how long each of these steps lasts, in seconds")
    min_requests: int = Field(
        default=100,
        ge=0,
        description="answers of the new version that a step waits for, up to ten times as long as it would last",
    )
    min_agreement: float = Field(
        default=0.95,
        gt=0,
        lt=1,
        description="share of the rows for which both versions must answer alike: the same label, or numbers within "
        "`tolerance` of each other",
    )
    tolerance: float = Field(
        default=0.05, gt=0, description="largest difference of numbers, as a share of the largest one answered"
    )
    max_errors: float = Field(
        default=0.01, gt=0, lt=1, description="share of the requests that may fail in the new version"
    )
    max_slowdown: float = Field(
        default=1.5,
        gt=0,
        description="a request is slow when it takes this many times the 95th percentile of the old version's",
    )
    max_slow: float = Field(
        default=0.1, gt=0, lt=1, description="share of the requests that may be slow in the new version"
    )
    false_alarm: float = Field(
        default=0.001,
        gt=0,
        le=0.1,
        description="chance that a limit stops a version which keeps it, however long one looks",
    )

    @model_validator(mode="after")
    def _ordered(self) -> RolloutPlan:
        if list(self.canary) != sorted(set(self.canary)):
            raise ValueError(f"canary is {list(self.canary)}; each share must be greater than the one before it")
        if not self.shadow_seconds and not self.canary:
            raise ValueError("shadow_seconds is 0 and canary is empty: there is no step left; leave out the roll-out")
        return self

    @property
    def steps(self) -> tuple[RolloutStep, ...]:
        """What happens, in order."""
        shadow = (RolloutStep(kind="shadow", share=self.shadow_share, seconds=self.shadow_seconds),)
        canary = tuple(RolloutStep(kind="canary", share=share, seconds=self.step_seconds) for share in self.canary)
        return (*(shadow if self.shadow_seconds else ()), *canary)


class RolloutStep(Frozen):
    """A step: ``shadow`` answers a share of the requests twice, ``canary`` gives it to the new version."""

    kind: Literal["shadow", "canary"]
    share: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.kind} {100 * self.share:g} %"
