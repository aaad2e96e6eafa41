"""The Pareto front: variants that no other beats everywhere."""

from __future__ import annotations

from collections.abc import Sequence

from model_registry.measurement import Measurement

Costs = tuple[float, ...]


def front(points: Sequence[Costs]) -> tuple[bool, ...]:
    """For each point of costs (lower is better in every place) whether no other point is at least as good everywhere
    and better somewhere. Equal points are both on the front."""
    return tuple(not any(_dominates(other, point) for other in points) for point in points)


def costs(measurement: Measurement) -> Costs:
    """What a variant costs: metric (sign turned so that lower is better), median latency in ms, bytes."""
    sign = -1.0 if measurement.metric.better == "higher" else 1.0
    return sign * measurement.metric.value, measurement.p50_ms, float(measurement.bytes)


def pareto_digests(measurements: Sequence[Measurement]) -> frozenset[str]:
    """Digests of the variants on the front of metric, latency and size."""
    flags = front([costs(m) for m in measurements])
    return frozenset(m.digest for m, on_front in zip(measurements, flags, strict=True) if on_front)


def _dominates(first: Costs, second: Costs) -> bool:
    return first != second and all(a <= b for a, b in zip(first, second, strict=True))
