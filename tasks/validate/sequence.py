"""In which order variants meet the test split: one fixed sequence, from the safest to the cheapest.

Each is tested at the full level, and the first that fails ends the sequence. So no level is spent on the others, and
still at most 5 % of all runs release a variant that breaks its margin, however many candidates a search looked at and
however alike they are: to release one that is too bad, the first of these in the sequence must pass (Maurer, Hothorn
and Lehmacher 1995; Westfall and Krishen 2001, Journal of Statistical Planning and Inference 99:25). It holds because
the order is fixed on validation, before the test split is opened.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from model_registry.measurement import Measurement, Objective

MOST_TESTED = 4
"""Each step before the last is one more chance to end early, so a few, well apart."""


def fixed_sequence(objective: Objective, passing: Sequence[Measurement], last: Measurement) -> tuple[Measurement, ...]:
    """From the safest of the passing variants to ``last``, at most :data:`MOST_TESTED`.

    Safe is a low 95 % bound of the loss on validation. Before the last stand safer ones that no other safer one beats
    at both cost and bound: each costs less than the one before and is less safe. Of more than fit, the safest stays
    and those between are spread evenly by the logarithm of their costs.

    Args:
        passing: variants that keep every critical gate on validation; a digest that occurs twice counts once.
        last: the one of them that the objective prefers.
    """
    cheapest = cost_of_objective(objective, last)

    def cost(m: Measurement) -> float:
        # Not below the last one's: it was preferred among those that speed cannot tell apart.
        return max(cost_of_objective(objective, m), cheapest)

    safer = {m.digest: m for m in passing if m.digest != last.digest and _bound(m) < _bound(last)}
    before: list[Measurement] = []
    for m in sorted(safer.values(), key=lambda m: (cost(m), _bound(m), m.digest)):
        if not before or _bound(m) < _bound(before[-1]):
            before.append(m)
    before.reverse()
    return (*_spread(before, [math.log(cost(m) / cheapest) for m in before]), last)


def passed_in_order(sequence: Sequence[Measurement], passes: Callable[[Measurement], bool]) -> int:
    """How many pass before the first that does not; nobody behind it is asked."""
    for number, member in enumerate(sequence):
        if not passes(member):
            return number
    return len(sequence)


def cost_of_objective(objective: Objective, m: Measurement) -> float:
    """What the objective counts, lower is better: share of the baseline's latency, bytes, or seconds per sample."""
    if objective == "size":
        return float(m.bytes)
    return m.latency_share[0] if objective == "latency" else 1.0 / m.throughput.value


def _bound(m: Measurement) -> float:
    return m.paired.bound if m.paired else 0.0  # the baseline loses nothing against itself


def _spread(before: list[Measurement], heights: list[float]) -> list[Measurement]:
    """Of these, the first and others at about equal steps down to height 0, as many as stand before the last one."""
    room = MOST_TESTED - 1
    if len(before) <= room:
        return before
    kept = {0}
    for step in range(1, room):
        wanted = heights[0] * (1 - step / room)
        kept.add(min(set(range(len(before))) - kept, key=lambda i: (abs(heights[i] - wanted), i)))
    return [before[i] for i in sorted(kept)]
