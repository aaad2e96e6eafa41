"""How a run reports itself where nobody draws bars: a line per stage that has ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.running.journal import Line, ended


@contextmanager
def progress_lines() -> Iterator[None]:
    """While the body runs, write a line to standard error for each stage that ends: how, and what it took."""
    token = ended.set(_write)
    try:
        yield
    finally:
        ended.reset(token)


def _write(line: Line) -> None:
    """Called by the stages, from any thread."""
    if line.status != "skipped":
        why = f" ({line.reason})" if line.status == "failed" else ""
        text = f"{time.strftime('%H:%M:%S')} {line.name:<32} {line.status:<8} {line.seconds:6.1f} s{why}\n"
        sys.stderr.write(text)  # in one piece: two stages may end at once
        sys.stderr.flush()
