"""The ladder: for each target, the share that every group loses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from tasks.allocate.costs import Costs, Table
from tasks.allocate.knapsack import Term, WidthChoice, cheapest_damage
from tasks.allocate.structure import Keep, Structure

_LATENCY = 2 / 3
"""Of a cost that is both latency and bytes."""
Damages = dict[str, list[tuple[int, float]]]
"""By group: channels left and the damage, from wide to narrow."""


def climb_down(
    structure: Structure,
    table: Table,
    costs: Costs,
    damages: Damages,
    *,
    objective: Literal["latency", "size", "both"],
    targets: Sequence[float],
) -> list[dict[str, Any]]:
    """A rung per target, as JSON, from the largest target to the smallest.

    Args:
        objective: what the targets are fractions of: the whole network's latency, its bytes, or both: layers that take
            no time at their narrowest may still take most of the bytes.

    Returns:
        Rungs of ``target``, ``reached`` (else the rung is the cheapest there is), ``ratios`` (removed share of every
        group, by its first layer), ``keep`` (the channels left), ``predicted_ms``, ``predicted_bytes`` and
        ``predicted_damage``.
    """
    full, latency = structure.full(), {"latency": 1.0, "size": 0.0, "both": _LATENCY}[objective]
    weight_ms, weight_bytes = latency / costs.ms(full), (1 - latency) / costs.bytes(full)

    def layer_cost(number: int, keep: Keep) -> float:
        return weight_ms * costs.layer_ms(number, keep) + weight_bytes * costs.layer_bytes(number, keep)

    terms = [Term(frozenset(names), partial(layer_cost, number)) for number, names in enumerate(costs.groups_of)]
    terms.append(Term(frozenset(), lambda keep: weight_ms * table.entrance_ms))
    whole = sum(term.cost(structure.full()) for term in terms)
    descending = sorted(targets, reverse=True)
    choices = {group.name: table.choices[group.name] for group in structure.groups}
    widths = structure.full()
    found = cheapest_damage(
        choices,
        lambda name, keep: damage_at(damages[name], widths[name], keep),
        terms,
        [target * whole for target in descending],
    )
    return [_rung(t, c, c.cost <= t * whole, widths, costs) for t, c in zip(descending, found, strict=True)]


def damage_at(measured: Sequence[tuple[int, float]], width: int, keep: int) -> float:
    """Between measured points as on a line; 0 for the whole width, below the narrowest as there."""
    above, damage = width, 0.0
    for left, value in measured:
        if keep >= left:
            return damage + (value - damage) * (above - keep) / (above - left)
        above, damage = left, value
    return damage


def _rung(target: float, choice: WidthChoice, reached: bool, widths: dict[str, int], costs: Costs) -> dict[str, Any]:
    return {
        "target": target,
        "reached": reached,
        "ratios": {name: 1 - left / widths[name] for name, left in choice.keep.items()},
        "keep": choice.keep,
        "predicted_ms": costs.ms(choice.keep),
        "predicted_bytes": costs.bytes(choice.keep),
        "predicted_damage": choice.damage,
    }
