"""How a run reports itself where nobody draws bars: a line per finished stage."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from flows.searching.search_progress import SEARCH
from tasks.running.stage_cache import listener

_ENDS = ("done", "reused")
"""What a stage reports last."""


class StageLines:
    """A line per stage that has ended, with the time of day and what it took."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._begun: dict[str, float] = {}
        self._ended: set[str] = set()
        self._lock = threading.Lock()

    def tell(self, name: str, fraction: float, text: str) -> None:
        """Called by the stages, from any thread. A search writes lines of its own."""
        with self._lock:
            begun = self._begun.setdefault(name, time.monotonic())
            if text not in _ENDS or name == SEARCH or name in self._ended:  # some are looked up again and again
                return
            self._ended.add(name)
            seconds = time.monotonic() - begun
            print(f"{time.strftime('%H:%M:%S')} {name:<32} {text:<6} {seconds:6.1f} s", file=self._stream, flush=True)


@contextmanager
def progress_lines() -> Iterator[None]:
    """While the body runs, write a line to standard error for each stage that ends."""
    token = listener.set(StageLines().tell)
    try:
        yield
    finally:
        listener.reset(token)
