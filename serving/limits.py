"""What one request may cost, at most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RequestLimits:
    """Bounds checked before anything of that size is allocated."""

    body_bytes: int = 16 << 20
    """Longest request body."""
    body_seconds: float = 30.0
    """Time in which the whole body must have arrived."""
    rank: int = 16
    """Most dimensions of a tensor."""
    elements: int = 1 << 22
    """Most elements of one tensor, sent or answered."""
    id_characters: int = 1024
    """Longest request id."""
    infer_seconds: float = 60.0
    """Time in which the engine must answer."""
    load_seconds: float = 120.0
    """Time in which an engine process must have loaded and warmed a version."""
    drain_seconds: float = 20.0
    """Time that requests in flight get when a version is taken away or the endpoint stops."""
