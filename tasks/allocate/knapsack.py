"""Which groups to narrow and how far, for the least damage at a given cost: a knapsack, solved greedily."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from tasks.allocate.structure import Keep

_FREE = 1e-9
"""Damage below it counts as this, so that of two harmless moves the one that saves more wins."""


@dataclass(frozen=True)
class Term:
    """A part of the cost and the groups whose widths it depends on; all terms add up."""

    groups: frozenset[str]
    cost: Callable[[Keep], float]


@dataclass(frozen=True)
class Move:
    """New widths of some groups, and the cost that they save for each unit of damage."""

    worth: float
    keep: dict[str, int]


_STAY = Move(0.0, {})


@dataclass(frozen=True)
class WidthChoice:
    """Channels left by group, what that costs, and the damage."""

    keep: dict[str, int]
    cost: float
    damage: float


def cheapest_damage(
    choices: Mapping[str, Sequence[int]],
    damage: Callable[[str, int], float],
    terms: Sequence[Term],
    targets: Sequence[float],
) -> list[WidthChoice]:
    """For each target, widths whose cost is at most the target; the cheapest ones seen where none are.

    From the whole network the move with the most cost saved for each unit of damage is made repeatedly (as HALP
    does, Shen et al. 2022, arXiv:2110.10811). A move may be several choices long, and of two groups that meet in a
    layer where no single one saves anything: kernels run faster at some widths than at narrower ones. What is left of
    a target is given back where it helps most. Each target takes the best of all widths seen, so that a smaller target
    never has a larger cost, nor less damage.

    Args:
        choices: widths by group, the whole one first, descending.
        damage: of a group at a width; 0 at its whole width, not falling as it gets narrower; damages add up.
        terms: whose costs add up to the cost.
    """
    solver = _Solver(choices, damage, terms)
    seen = solver.path()
    for target in targets:
        start = next((choice for choice in seen if choice.cost <= target), None)
        if start is not None:
            seen.append(solver.give_back(start, target))
    narrowest = {name: widths[-1] for name, widths in choices.items()}
    seen.append(solver.choice(narrowest))
    cheapest = min(seen, key=lambda choice: (choice.cost, choice.damage))
    best = []
    for target in targets:
        fitting = [choice for choice in seen if choice.cost <= target]
        best.append(min(fitting, key=lambda choice: (choice.damage, choice.cost), default=cheapest))
    return best


class _Solver:
    def __init__(
        self,
        choices: Mapping[str, Sequence[int]],
        damage: Callable[[str, int], float],
        terms: Sequence[Term],
    ) -> None:
        self.choices, self.damage, self.terms = choices, damage, terms
        self.touching = {name: [term for term in terms if name in term.groups] for name in choices}
        self.neighbours = {
            name: {other for term in touched for other in term.groups if other in choices} | {name}
            for name, touched in self.touching.items()
        }
        self.pairs: list[tuple[str, ...]] = sorted(
            (name, other) for name, others in self.neighbours.items() for other in others if name < other
        )

    def choice(self, keep: Mapping[str, int]) -> WidthChoice:
        cost = sum(term.cost(keep) for term in self.terms)
        return WidthChoice(dict(keep), cost, sum(self.damage(name, width) for name, width in keep.items()))

    def path(self) -> list[WidthChoice]:
        """From the whole network to where no group, and no two neighbours, can save anything more."""
        keep = {name: widths[0] for name, widths in self.choices.items()}
        found = [self.choice(keep)]
        moves: dict[tuple[str, ...], Move] = {(name,): self._best_move((name,), keep) for name in keep}
        pairs: dict[tuple[str, ...], Move] = {}
        while True:
            best = max(moves.values(), key=lambda move: move.worth, default=_STAY)
            if best.worth <= 0.0:
                stale = [pair for pair in self.pairs if pair not in pairs]
                pairs |= {pair: self._best_move(pair, keep) for pair in stale}
                best = max(pairs.values(), key=lambda move: move.worth, default=_STAY)
            if best.worth <= 0.0:
                return found
            keep |= best.keep
            found.append(self.choice(keep))
            affected = {other for name in best.keep for other in self.neighbours[name]}
            moves |= {(name,): self._best_move((name,), keep) for name in affected}
            pairs = {pair: move for pair, move in pairs.items() if not affected.intersection(pair)}

    def give_back(self, start: WidthChoice, target: float) -> WidthChoice:
        """Widen groups as long as the cost stays within the target, the most damage undone per cost first."""
        keep, left = dict(start.keep), target - start.cost
        while True:
            best: tuple[float, str, int, float] | None = None
            for name, width in keep.items():
                damaged = self.damage(name, width)
                for wider in self.choices[name]:
                    if wider <= width:
                        break
                    more = -self._saving({name: wider}, keep)
                    gain = damaged - self.damage(name, wider)
                    if more <= left and gain > 0.0:
                        worth = gain / max(more, _FREE)
                        if best is None or worth > best[0]:
                            best = (worth, name, wider, more)
            if best is None:
                return self._within(keep, target, start)
            keep[best[1]] = best[2]
            left -= best[3]

    def _within(self, keep: dict[str, int], target: float, start: WidthChoice) -> WidthChoice:
        """The sums of rounded differences may be off by a hair; the cost itself decides."""
        found = self.choice(keep)
        return found if found.cost <= target else start

    def _best_move(self, names: tuple[str, ...], keep: Mapping[str, int]) -> Move:
        """The narrower widths of these groups, all of them, that save the most cost per damage."""
        best, now = _STAY, sum(self.damage(name, keep[name]) for name in names)
        for widths in product(*([w for w in self.choices[name] if w < keep[name]] for name in names)):
            changed = dict(zip(names, widths, strict=True))
            saved = self._saving(changed, keep)
            worth = saved / max(sum(self.damage(name, w) for name, w in changed.items()) - now, _FREE)
            if saved > 1e-12 and worth > best.worth:
                best = Move(worth, changed)
        return best

    def _saving(self, changed: Mapping[str, int], keep: Mapping[str, int]) -> float:
        after = {**keep, **changed}
        touched = {id(term): term for name in changed for term in self.touching[name]}
        return sum(term.cost(keep) - term.cost(after) for term in touched.values())
