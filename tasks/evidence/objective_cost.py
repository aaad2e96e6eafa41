"""What an objective counts: one number by which variants that are good enough are compared, lower is better."""

from __future__ import annotations

import math

from model_registry.measurement import Objective


def objective_cost(objective: Objective, *, latency: float, size: float, throughput: float) -> float:
    """The latency (in the unit given), the size, the time per sample, or where both count and for a front the geometric
    mean of latency and size: to halve either is worth the same.

    Args:
        size: in bytes.
        throughput: in samples per second.
    """
    if objective == "size":
        return size
    if objective == "throughput":
        return 1.0 / throughput
    return latency if objective == "latency" else math.sqrt(latency * size)
