"""One structure of a search on its way: planned, sketched to be timed, trained, measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from model_registry.measurement import Clocked, Measurement
from model_registry.variant import Variant
from tasks.running.stage import Outcome

_BEGINNING = 5.0
"""Seconds of a training besides its epochs, about."""


@dataclass(eq=False)
class Candidate:
    """One structure on its way. ``forms``: its files as measured after its latest training, the fp32 one first."""

    name: str
    kind: Literal["teacher", "pruned", "student", "cut"]
    what: str
    settings: dict[str, Any]
    last: int
    model: Variant | None = None
    untrained: Variant | None = None
    """Its model before any training."""
    float32: Variant | None = None
    int8: Variant | None = None
    rung: int = 0
    methods: dict[str, set[str]] = field(default_factory=dict)
    """Digests of its quantized files, those that are only timed too, by the method that made them."""
    sketches: tuple[Variant, ...] = ()
    """Files of its untrained model, only to be timed."""
    clocked: tuple[Clocked, ...] = ()
    """What they cost: training changes nothing about that."""
    forms: tuple[Measurement, ...] = ()
    earlier: tuple[Measurement, ...] = ()
    """Files of trainings before the latest that keep the budget: training on may lose what was proven."""
    losses: list[float] = field(default_factory=list)
    """Of its best form, after each training."""
    epochs: list[float] = field(default_factory=list)
    """Epochs that it had in all, after each training of the whole model."""
    seconds: float = 0.0
    training_seconds: float = 0.0
    """Of its latest training alone."""
    measured_epoch: float = 0.0
    """Seconds of an epoch of that training, as it measured it itself; 0 where it did not say."""
    enough: float = float("inf")
    """By how much its epochs must be multiplied for its loss to be well within the margin, as far as is known."""
    hoped: float = float("inf")
    """The same as far as is hoped, which is less."""
    row_seconds: float = 0.0
    """What a row of a training step takes, by a few trial steps; 0 while unknown."""
    views: int | None = None
    """Of the training split, in its latest training."""
    by_heart: bool = False
    """Whether it does much better on rows that it learned from."""
    batch_size: int | None = None
    """Rows of a training step, where more of them take hardly longer than as many as the spec says."""

    def pace(self, values: Mapping[str, Any], *, larger: bool) -> None:
        """Take over how fast it trains; ``larger``: with the batch that pays."""
        found = values.get("larger") if larger else values
        self.row_seconds = float((found or {}).get("row_seconds") or 0.0)
        self.batch_size = found["batch_size"] if found and larger else None

    failure: str = ""
    longer: int = 0
    """Trainings of the whole model that it gets besides the rungs: its loss was within the margin, its bound not."""
    planned: float = 0.0
    """Expected cost, as the objective counts it, by the allocation that planned it; 0 where nothing was planned."""
    planned_share: float = 0.0
    """Of the teacher's latency, expected likewise; 0 where nothing was planned, or not for latency."""
    planned_bytes: float = 0.0
    """Of its smallest file, expected likewise."""
    form: str = ""
    """Of a pruned candidate: what its latencies were planned for, int8 or fp32."""
    damage: float | None = None
    """What narrowing was planned to do to the answers, before any training; comparable among pruned candidates."""
    base: str = ""
    """Of a pruned candidate: the student that was narrowed; empty for the teacher."""
    inherited: float = 0.0
    """Of a student: share of its weights that began as the teacher's."""
    behind: str = ""
    """Another candidate that costs no more and was planned with less damage: this one is not trained."""

    def epoch_seconds(self, rows: float) -> float:
        """Of one more epoch, by its latest training, else by trial steps on so many rows; 0 where nothing is known.

        A training's own seconds hold what comes once, however many epochs follow: of a short one that is the half.
        """
        had = self.epochs[-1] - (self.epochs[-2] if len(self.epochs) > 1 else 0) if self.epochs else 0
        if self.measured_epoch and had >= 1:
            return self.measured_epoch
        if self.training_seconds and had >= 1:  # of less, most was spent on beginning and ending
            return max(self.training_seconds / 2, self.training_seconds - _BEGINNING) / had
        return rows * self.row_seconds

    def note_methods(self, quantized: Outcome) -> None:
        """Keep which method made which of the files."""
        for method, digest in quantized.roles.items():
            self.methods.setdefault(method, set()).add(digest)

    def by_method(self, *methods: str) -> set[str]:
        """Digests of its files that any of these methods made."""
        return set[str]().union(*(self.methods.get(method, ()) for method in methods))

    @property
    def made(self) -> bool:
        """Whether there is a model of it, trained or not."""
        return self.model is not None

    @property
    def family(self) -> str:
        """Candidates of which the cheaper one is taken to lose more: made the same way of the same network.

        Students that are scaled by other arguments are no family: of two as cheap the shallow one may lose half of what
        the narrow one does. What is cut is the widest of those that are narrowed in its place.
        """
        if self.kind == "cut":
            return f"pruned {self.name} []"
        scaled_by = {
            key: value if isinstance(value, str) else "" for key, value in self.settings.get("scale", {}).items()
        }
        return f"{self.kind} {self.base} {sorted(scaled_by.items())}"


def loss_of(form: Measurement) -> float:
    """Mean loss of the metric against the baseline, on the same samples."""
    return -form.paired.difference if form.paired else 0.0


def released(form: Measurement) -> bool:
    """Whether the form may be released: not the baseline itself."""
    return form.digest != form.baseline
