"""What a request and a connection may cost, at most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RequestLimits:
    """Bounds checked before anything of that size is allocated."""

    # -- of a connection
    connections: int = 10_000
    """Open at a time."""
    head_bytes: int = 16 << 10
    """Longest head of a request: its first line and all headers."""
    headers: int = 100
    """Most headers of a request."""
    head_seconds: float = 10.0
    """Time in which the whole head must have arrived, from its first byte."""
    idle_seconds: float = 75.0
    """Time that a connection may stay open without a request."""
    chunks: int = 1 << 16
    """Most chunks of a body in chunks."""
    body_bytes: int = 16 << 20
    """Longest request body, as sent."""
    unpacked_bytes: int = 64 << 20
    """Longest request body after decompression."""
    unpacked_ratio: int = 200
    """How many times longer than it was sent a body may become."""
    body_seconds: float = 30.0
    """Time in which the whole body must have arrived."""
    arriving_bytes: int = 1 << 30
    """Of all bodies that are arriving at a time, as announced."""
    # -- of a request
    rank: int = 16
    """Most dimensions of a tensor."""
    elements: int = 1 << 22
    """Most elements of one tensor, sent or answered."""
    id_characters: int = 1024
    """Longest request id."""
    depth: int = 24
    """Deepest nesting of a JSON body: data nested as its shape, and a few levels around it."""
    infer_seconds: float = 60.0
    """Time in which the engine must answer."""
    # -- of a version
    cores: int = 1024
    """That its engines count on; fewer where the process may use fewer."""
    rows_per_run: int = 64
    """Most rows that go through the model at once: more would keep memory for good, and others waiting."""
    pending: int = 1024
    """Most requests that wait for a version."""
    pending_bytes: int = 256 << 20
    """Most bytes of their bodies."""
    pending_seconds: float = 10.0
    """Longest time that a request is expected to wait for its turn; beyond that it is refused at once."""
    large_body_bytes: int = 1 << 20
    """JSON that is longer goes to an engine of its own, so that parsing it holds up nobody else."""
    load_seconds: float = 120.0
    """Time in which an engine process must have loaded and warmed a version."""
    drain_seconds: float = 20.0
    """Time that requests in flight get when a version is taken away or the endpoint stops."""


@dataclass(frozen=True)
class GenerationBounds:
    """What continuing texts may cost, for each version that does so."""

    context: int = 8192
    """Tokens of a text, prompt and answer, at most."""
    slots: int = 16
    """Texts at a time, at most."""
    tokens: int = 2048
    """Of an answer whose request does not say how long it may be."""
    cache_bytes: int = 2 << 30
    """Of keys and values of all that the texts may come to: who would take more waits for others to end."""
    prefix_bytes: int = 256 << 20
    """Of those of prompts that were read, kept for others that begin with the same."""
    waiting: int = 64
    """Texts that wait for a slot."""
    stops: int = 8
    """Texts at which an answer may end, in a request."""
    choices: int = 16
    """Answers and prompts in a request."""
