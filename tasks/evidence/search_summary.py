"""What a search did, as a value: every candidate with its numbers, and why it was or was not taken further."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from model_registry.variant import Frozen

State = Literal["keeps the budget", "loses too much", "over the budget", "failed", "given up", "not reached"]


class CandidateForm(Frozen):
    """One exported file of a candidate, as measured on validation."""

    name: str
    digest: str
    bytes: int
    p50_ms: float
    p95_ms: float
    throughput: float
    metric: float | None
    """None, like loss and bound, where it was only timed: nothing was trained yet."""
    loss: float | None
    """Against the baseline on the same samples; negative: better than it."""
    bound: float | None
    """One-sided 95 % bound of the loss."""
    speedup: float | None
    speedup_low: float | None = None
    """Lower end of its 95 % interval; None in records of before, as is ``shrink``: they are not judged by it."""
    shrink: float | None = None
    """Bytes of the baseline's file over this one's."""
    luts: int | None = None
    """Look-up tables of an FPGA, about; None where nobody asked, or no circuit can be made of it."""
    cpu_seconds: float | None
    fails: tuple[str, ...] = ()
    """Gates that it would fail."""


class CandidateRow(Frozen):
    """One structure that the search considered. Its numbers are those of its latest training."""

    name: str
    kind: Literal["teacher", "pruned", "student", "cut"]
    what: str
    """How it is made, in words."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """What determines its structure: ratios by layer, or the scale."""
    state: State
    reason: str
    rung: int
    """Trainings done."""
    rungs: int
    """Trainings it could have had."""
    losses: tuple[float, ...] = ()
    """The loss of its best form after each training."""
    epochs: tuple[float, ...] = ()
    """Epochs that it had in all, after each training of the whole model."""
    cost: float
    """What the objective counts: ms, bytes, or seconds per sample."""
    seconds: float
    """Spent on it in its stages' processes, whether in this run or before."""
    forms: tuple[CandidateForm, ...] = ()
    planned_bytes: float = 0.0
    """Of its smallest file, as the allocation expects; 0 where nothing was planned."""
    behind: str = ""
    """Another candidate that costs no more and was planned to lose less."""


NO_CIRCUIT = "no circuit can be made of it"
"""What a budget of look-up tables says of a file that no FPGA takes."""
TRAINED_ON = "teacher-trained-on"
"""Name of the teacher after more training."""


class MixTried(Frozen):
    """A mix of labels and teacher that a first training was made with, and what came of it on validation."""

    candidate: str
    alpha: float
    """The teacher's share; 0: labels alone."""
    temperature: float
    views: int | None
    metric: float
    loss: float
    """The workload's own."""
    teacher: str = ""
    """Who answered, if not the teacher itself: :data:`TRAINED_ON`, or a candidate's model that does better than it."""
    learning_rate: float = 0.0
    """Its peak; 0 in records of before."""
    optimizer: str = "adamw"
    chosen: bool = False
    """Of those that were tried with this candidate."""


class BestSoFar(Frozen):
    """The best form that kept the budget on validation from this moment on."""

    seconds: float
    """Of computing, since the search began."""
    name: str
    digest: str
    cost: float
    """What the objective counts: share of the baseline's latency, bytes, or seconds per sample."""
    bytes: int
    speedup: float | None
    loss: float


class SearchSummary(Frozen):
    """A whole search."""

    objective: str
    budget: dict[str, Any]
    candidates: tuple[CandidateRow, ...]
    best: str | None
    """Digest of the cheapest form that keeps the budget on validation; None where none does."""
    trials: int
    seconds: float
    """Of all stages' processes, in all runs of this search."""
    ended: str
    """Why the search ended, in words."""
    limited: bool = False
    """More time or trainings may find more: it ended at their limit, or trained as long as the time allowed."""
    resolved_from: str | None = None
    """The run whose stored measurements answered, without any training."""
    sensitivity: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Damage by layer and share removed, as measured on the teacher."""
    control: dict[str, float] = Field(default_factory=dict)
    """The winner's structure trained without the teacher: ``gain`` with ``low`` and ``high`` (95 %), ``p``."""
    planning_seconds: float = 0.0
    """Of all seconds, those before the first training."""
    mixes: tuple[MixTried, ...] = ()
    by_heart: bool = False
    """Whether pupils learned the training split by heart, and long trainings saw changed rows therefore."""
    untried: tuple[str, ...] = ()
    """What the teacher does not allow to be tried, and why."""
    curve: tuple[BestSoFar, ...] = ()
