"""A search tells how it goes: a lasting line per candidate and the best so far."""

from __future__ import annotations

import sys
import time

from tasks.running.stage_cache import listener

SEARCH = "search"
"""Under this name the search tells its listener."""


def tell(fraction: float, text: str) -> None:
    """Tell whoever listens, and on standard error where that is no terminal, which has its own lines."""
    told = listener.get()
    if told is not None:
        told(SEARCH, fraction, text)
    if not sys.stderr.isatty():
        print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)
