"""Which form each part gets, so that all are small enough together and do the least damage: a knapsack, exactly."""

from __future__ import annotations

from collections.abc import Sequence


def least_damage(choices: Sequence[Sequence[tuple[int, float]]], limit: int) -> tuple[int, ...] | None:
    """The number of the choice for each part; None where even the smallest are too large together.

    For each number of parts it keeps the totals that no other ones beat in size and damage (Nemhauser and Ullmann 1969,
    "Discrete dynamic programming and capital allocation"). Of equal damages the smaller size is taken.

    Args:
        choices: of each part, size and damage.
        limit: of the sum of sizes.
    """
    left = sum(min(size for size, _ in options) for options in choices)
    totals = [(0, 0.0, tuple[int, ...]())]
    for options in choices:
        left -= min(size for size, _ in options)
        grown = sorted(
            (size + more, damage + harm, (*taken, number))
            for size, damage, taken in totals
            for number, (more, harm) in enumerate(options)
            if size + more + left <= limit
        )
        totals, least = [], float("inf")
        for total in grown:
            if total[1] < least:
                totals.append(total)
                least = total[1]
    return totals[-1][2] if totals else None
