"""What happened in a run, step by step, as it happens: for the report of a run that ends well, badly or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

from tasks.running.stage import Outcome


@dataclass(frozen=True)
class Line:
    """One step: ``compute_seconds`` is the part spent in its own process, by its algorithm."""

    name: str
    status: Literal["computed", "reused", "skipped", "failed"]
    seconds: float
    compute_seconds: float = 0.0
    reason: str = ""
    host: str = ""
    """Where it was computed; empty where it was not."""


@dataclass
class Journal:
    """Lines in the order in which steps ended. Steps run in several threads."""

    lines: list[Line] = field(default_factory=list)
    failures: dict[str, BaseException] = field(default_factory=dict)
    """Why each step failed that has not gone well since, by its name."""
    found: dict[str, Outcome] = field(default_factory=dict)
    """What stages answered, by key: asked for once more in the same run it is not looked up again."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def failure(self) -> tuple[str, BaseException] | None:
        """The first step that failed, and why."""
        return next(iter(self.failures.items()), None)

    def add(self, line: Line) -> None:
        """Note a step's end. A step walked again replaces its line, unless it only found what this run had made."""
        with self._lock:
            self.failures.pop(line.name, None)
            for index, old in enumerate(self.lines):
                if old.name == line.name:
                    if line.status == "reused" and old.status in {"computed", "reused"}:
                        return  # found once more
                    self.lines[index] = line
                    break
            else:
                self.lines.append(line)
        told = ended.get()
        if told is not None:
            told(line)

    def add_outcome(self, outcome: Outcome) -> None:
        """Note a stage's result."""
        self.found[outcome.key] = outcome
        self.add(
            Line(outcome.name, outcome.status, outcome.seconds, outcome.compute_seconds, outcome.reason, outcome.host)
        )

    def fail(self, name: str, error: BaseException, seconds: float) -> None:
        """Note that a step raised; it may be tried again."""
        self.add(Line(name, "failed", seconds, reason=type(error).__name__))
        with self._lock:
            self.failures[name] = error


journal: ContextVar[Journal | None] = ContextVar("journal", default=None)
"""The journal of the run in hand. Prefect's threads inherit it."""
ended: ContextVar[Callable[[Line], None] | None] = ContextVar("ended", default=None)
"""Told of every line that enters a journal, from any thread."""
