"""Made-up tasks for a search: what each structure costs, loses after so many epochs, and how long an epoch takes.

Losses fall with a power of the epochs to what a structure can do at its best (Hestness et al. 2017, arXiv:1712.00409),
which grows with the logarithm of the cost below an edge. The ranges are those of the rows of the proof.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from model_registry.manifest import hash_bytes

TRAIN, TEST = 20_000, 4000
TEACHER_INT8 = 0.4
"""Cost of the teacher's int8 file, which loses nothing."""


@dataclass(frozen=True)
class Structure:
    """``cost``: share of the teacher's latency, as it turns out. ``planned``: as it is expected. ``edge``: its family
    loses next to nothing down to this cost."""

    name: str
    base: str
    planned: float
    cost: float
    edge: float
    damage: float


class MadeUpTask:
    """Drawn from a seed.

    Attributes:
        margin: that may be lost. ``minutes``: of the search. ``epoch_seconds``: of the teacher's training.
        rows: of the validation split. ``differ``: share of the answers in which a candidate differs from the teacher.
        structures: narrower ones of the teacher, and one that is cut, with narrower ones of its own.
    """

    def __init__(self, seed: int) -> None:
        self.seed, random = seed, np.random.default_rng(seed)
        self.minutes, self.margin = float(random.choice([8, 12, 20, 25])), float(random.choice([0.005, 0.01]))
        self.epoch_seconds = _between(random, 4, 90)
        self.rows, self.differ = int(random.choice([2000, 4000])), float(random.uniform(0.02, 0.08))
        edge = _between(random, 0.035, 0.3)
        self._slope = float(random.uniform(1.5, 9)) * self.margin
        self._gain = float(random.uniform(0, 1)) * self.margin
        self._start, self._power = float(random.uniform(3, 15)) * self.margin, float(random.uniform(0.6, 1.4))
        self.structures = [
            self._structure(random, f"pruned{100 * share:.0f}{form}", "", share * (0.93 if form else 1.0), edge)
            for share in _SHARES
            for form in ("", "f")
            if not form or share <= _WIDEST_FP32
        ]
        if random.random() < _CAN_BE_CUT:
            better = edge / math.sqrt(float(random.uniform(0.5, 4)))
            self.structures.append(self._structure(random, "half", "half", _HALF, better))
            self.structures += [
                self._structure(random, f"half-pruned{100 * share:.0f}", "half", share, better)
                for share in _SHARES
                if share < _NARROWER * _HALF
            ]

    def loss(self, structure: Structure, epochs: float) -> float:
        """What it truly loses after so many epochs in all."""
        begin = self._start * (0.3 + math.log(1 / structure.cost) / 2)
        return self.least_loss(structure) + begin * math.pow(max(epochs, 0.1), -self._power)

    def least_loss(self, structure: Structure) -> float:
        """The same after any number of them."""
        below = max(0.0, math.log(structure.edge / structure.cost))
        return self._slope * math.pow(below, 1.3) - self._gain

    def error(self, loss: float, rows: int) -> float:
        """Standard error of a loss on so many rows."""
        return math.sqrt(max(self.differ, 1.5 * abs(loss)) / rows)

    def seen(self, name: str, loss: float, rows: int) -> float:
        """The loss of the file of this name as a split of so many rows shows it: the same whenever it is asked."""
        random = np.random.default_rng([self.seed, rows, int(hash_bytes(name.encode())[:8], 16)])
        return float(random.normal(loss, self.error(loss, rows)))

    def possible(self) -> float:
        """The least cost of a structure that could be proven, had it all the time there is."""
        costs = [
            s.cost
            for s in self.structures
            if self.least_loss(s) + 2 * self.error(self.least_loss(s), self.rows) <= self.margin
        ]
        return min(costs, default=TEACHER_INT8)

    def _structure(self, random: np.random.Generator, name: str, base: str, planned: float, edge: float) -> Structure:
        damage = 0.05 if planned >= _HARMLESS else 3 * math.log(_HARMLESS / planned)
        cost = planned * float(np.exp(random.normal(0, 0.05)))
        return Structure(name, base, planned, cost, edge, damage + (1.0 if base else 0.0))


_SHARES = (
    *(0.7, 0.6, 0.5, 0.43, 0.36, 0.3, 0.26, 0.22, 0.19, 0.16, 0.14, 0.12),
    *(0.1, 0.09, 0.08, 0.07, 0.06, 0.05, 0.04, 0.03, 0.02),
)
_HARMLESS, _WIDEST_FP32, _HALF, _NARROWER = 0.5, 0.16, 0.35, 0.8
_CAN_BE_CUT = 0.7


def _between(random: np.random.Generator, low: float, high: float) -> float:
    """Evenly in its logarithm."""
    return float(np.exp(random.uniform(math.log(low), math.log(high))))
