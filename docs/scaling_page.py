"""Prints the table of docs/scaling.md: what a step of data parallel training costs on GPUs, calculated.

python docs/scaling_page.py
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

PEAK, REACHED = 312e12, 0.45
"""A100: bf16 operations per second, and the share of it that one GPU reaches alone."""
MEMORY = 80e9
INSIDE, OUTSIDE = 250e9, 22e9
"""Bytes per second and direction of one GPU: to others of its node (NVLink), and to other nodes (200 Gbit/s), as
reached."""
NODE = 8
BACKWARD = 2 / 3
"""Of a step's computing; gradients that are ready travel meanwhile."""
STATE = 16
"""Bytes per weight: bf16 weight and gradient, fp32 weight, two moments."""
ACTIVATIONS = 20e9
"""Left free for them."""


@dataclass(frozen=True)
class Model:
    """``flops``: of a step of one GPU. ``sent``: bytes per weight that are exchanged."""

    name: str
    weights: float
    flops: float
    sent: int


def transformer(name: str, weights: float, tokens: int) -> Model:
    return Model(f"{name}, {tokens:,} tokens".replace(",000", " 000"), weights, 6 * weights * tokens, 2)


MODELS = (
    Model("25 M (ResNet-50), 256 images", 25.6e6, 3 * 2 * 4.1e9 * 256, 4),
    transformer("1 B", 1e9, 16_000),
    transformer("70 B", 70e9, 8_000),
)


def slowest(gpus: int) -> float:
    """Of a ring's links."""
    return INSIDE if gpus <= NODE else OUTSIDE


def ring(model: Model, gpus: int) -> float:
    """Seconds of an all-reduce in a ring: each GPU sends twice the whole, in parts."""
    return 2 * (gpus - 1) / gpus * model.weights * model.sent / slowest(gpus)


def doubling(model: Model, gpus: int) -> float:
    """Seconds of recursive doubling: the whole for each doubling, the first three inside of the node; fp32."""
    inner = min(gpus, NODE)
    size = 4 * model.weights
    return size * (math.log2(inner) / INSIDE + math.log2(gpus / inner) / OUTSIDE)


def sharded(model: Model, gpus: int) -> float:
    """Seconds of what FSDP moves: weights gathered twice, gradients scattered once."""
    return 3 * (gpus - 1) / gpus * model.weights * 2 / slowest(gpus)


def efficiency(model: Model, seconds: float, *, hidden: float) -> float:
    """Of a step in which a share of the computing hides the exchange."""
    computing = model.flops / (PEAK * REACHED)
    return computing / (computing + max(0.0, seconds - hidden * computing))


def rows() -> Iterator[str]:
    """The table, line by line."""
    yield "| model, per GPU and step | GPUs | state per GPU: whole, sharded | ring (DDP) | FSDP2 | exact (doubling) |"
    yield "|---|---|---|---|---|---|"
    for model in MODELS:
        for gpus in (8, 64, 1024):
            whole, part = STATE * model.weights, STATE * model.weights / gpus
            fits, sharded_fits = (size + ACTIVATIONS <= MEMORY for size in (whole, part))
            shares = (
                efficiency(model, ring(model, gpus), hidden=BACKWARD) if fits else None,
                # Gathered ahead during the whole step, scattered during its backward pass.
                efficiency(model, sharded(model, gpus), hidden=1.0) if sharded_fits else None,
                efficiency(model, doubling(model, gpus), hidden=0.0) if fits else None,
            )
            cells = " | ".join("does not fit" if share is None else f"{share:.0%}" for share in shares)
            yield f"| {model.name} | {gpus} | {whole / 1e9:.3g}, {part / 1e9:.2g} GB | {cells} |"


if __name__ == "__main__":
    print("\n".join(rows()))
