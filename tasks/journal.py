"""What happened in a run, step by step, as it happens: for the report of a run that ends well, badly or not at all."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

from tasks.stage import Outcome


@dataclass(frozen=True)
class Line:
    """One step: ``compute_seconds`` is the part spent in its own process, by its algorithm."""

    name: str
    status: Literal["computed", "reused", "skipped", "failed"]
    seconds: float
    compute_seconds: float = 0.0
    reason: str = ""


@dataclass
class Journal:
    """Lines in the order in which steps ended. Steps run in several threads."""

    lines: list[Line] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    failure: tuple[str, BaseException] | None = None
    """The first step that failed for good, and why."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, line: Line) -> None:
        """Note a step's end; a step walked again (after a corrupt object) replaces its line."""
        with self._lock:
            for index, old in enumerate(self.lines):
                if old.name == line.name:
                    self.lines[index] = line
                    return
            self.lines.append(line)

    def add_outcome(self, outcome: Outcome) -> None:
        """Note a stage's result."""
        with self._lock:
            self.outcomes.append(outcome)
        self.add(Line(outcome.name, outcome.status, outcome.seconds, outcome.compute_seconds, outcome.reason))

    def fail(self, name: str, error: BaseException, seconds: float) -> None:
        """Note that a step raised; the first one is what the run failed of."""
        self.add(Line(name, "failed", seconds, reason=type(error).__name__))
        with self._lock:
            if self.failure is None or self.failure[0] == name:
                self.failure = (name, error)

    def recovered(self, name: str) -> None:
        """A retry went well: forget its failure."""
        with self._lock:
            if self.failure is not None and self.failure[0] == name:
                self.failure = None


journal: ContextVar[Journal | None] = ContextVar("journal", default=None)
"""The journal of the run in hand. Prefect's threads inherit it."""
