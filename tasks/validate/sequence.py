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

from model_registry.measurement import Clocked, Measurement, Objective
from tasks.evidence.objective_cost import objective_cost

MOST_TESTED = 4
"""Each step before the last is one more chance to end early, so a few, well apart."""
MOST_ON_FRONT = 8
_ALIKE = 1.03
"""Costs that differ less are the same within the noise of a timing."""


def fixed_sequence(
    objective: Objective, passing: Sequence[Measurement], last: Measurement, margin: float
) -> tuple[Measurement, ...]:
    """From the safest of the passing variants to ``last``, at most :data:`MOST_TESTED`.

    Safe is a loss on validation that lies many of its errors below the margin: such a one keeps it on other rows
    too. A low bound does not tell that. Of a structure that answers one row in ten otherwise it is luck as often as
    not, and of the teacher's int8 file, which answers one in a hundred otherwise, it is all but certain. Before the
    last stand safer ones that no other safer one beats at both cost and safety: each costs less than the one before
    and is less safe. Of more than fit, the safest stays and those between are spread evenly by the logarithm of
    their costs.

    Args:
        passing: variants that keep every critical gate on validation; a digest that occurs twice counts once.
        last: the one of them that the objective prefers.
        margin: that may be lost, in the metric's unit.
    """

    def risk(m: Measurement) -> float:
        return _risk(m, margin)

    cheapest = cost_of_objective(objective, last)

    def cost(m: Measurement) -> float:
        # Not below the last one's: it was preferred among those that speed cannot tell apart.
        return max(cost_of_objective(objective, m), cheapest)

    safer = {m.digest: m for m in passing if m.digest != last.digest and risk(m) < risk(last)}
    before: list[Measurement] = []
    for m in sorted(safer.values(), key=lambda m: (cost(m), risk(m), m.digest)):
        if not before or risk(m) < risk(before[-1]):
            before.append(m)
    before.reverse()
    return (*_spread(before, [math.log(cost(m) / cheapest) for m in before]), last)


def front_sequence(passing: Sequence[Measurement], margin: float) -> tuple[Measurement, ...]:
    """Every passing variant that no safer one equals or beats at both latency and size, from the safest on.

    Of more than :data:`MOST_ON_FRONT` go those nearest to another in latency and size; the safest, the fastest, the
    smallest and the best at both together stay. All that pass before the first that fails are proven: that one of them
    breaks its margin is as improbable as that the first of these in the sequence passes.
    """
    kept: list[Measurement] = []
    for m in sorted(passing, key=lambda m: (_risk(m, margin), cost_of_objective("front", m), m.digest)):
        if not any(k.latency_share[0] <= _ALIKE * m.latency_share[0] and k.bytes <= _ALIKE * m.bytes for k in kept):
            kept.append(m)
    objectives: tuple[Objective, ...] = ("latency", "size", "front")
    fixed = [kept[0], *(min(kept, key=lambda m, o=o: cost_of_objective(o, m)) for o in objectives)]  # type: ignore[misc]
    while len(kept) > MOST_ON_FRONT:
        kept.remove(
            min((m for m in kept if m not in fixed), key=lambda m: min(_apart(m, k) for k in kept if k is not m))
        )
    return tuple(kept)


def passed_in_order(sequence: Sequence[Measurement], passes: Callable[[Measurement], bool]) -> int:
    """How many pass before the first that does not; nobody behind it is asked."""
    for number, member in enumerate(sequence):
        if not passes(member):
            return number
    return len(sequence)


def cost_of_objective(objective: Objective, m: Measurement | Clocked) -> float:
    """What the objective counts, lower is better: share of the baseline's latency, bytes, seconds per sample, or where
    both count and for a front the geometric mean of the first two."""
    share, throughput = m.latency_share[0], m.throughput.value if objective == "throughput" else math.inf
    return objective_cost(objective, latency=share, size=float(m.bytes), throughput=throughput)


def _apart(one: Measurement, other: Measurement) -> float:
    """How far in latency and size, in logarithms."""
    return math.hypot(math.log(one.latency_share[0] / other.latency_share[0]), math.log(one.bytes / other.bytes))


def _risk(m: Measurement, margin: float) -> float:
    """Lower is safer: by how many times the half-width of its one-sided 95 % bound the loss is above the margin."""
    if m.paired is None:
        return -math.inf  # the baseline loses nothing against itself
    loss, half = -m.paired.difference, m.paired.bound + m.paired.difference
    return (loss - margin) / half if half > 0 else math.copysign(math.inf, loss - margin)


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
