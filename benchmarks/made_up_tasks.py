"""Made-up tasks for a search: what each structure costs, loses after so many epochs, and how long an epoch takes.

Losses fall with a power of the epochs to what a structure can do at its best (Hestness et al. 2017, arXiv:1712.00409),
which grows with the logarithm of its width below an edge. Tasks differ in all of that, and so do the structures of one
task; the ranges are those of the rows of the proof.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from model_registry.manifest import hash_bytes

TRAIN, TEST = 20_000, 4000
INT8_SIZE = 0.25
"""Of the teacher's int8 file, which loses nothing."""
INHERITED = 0.2
"""Of the epochs that a cut network had, those that the ones narrowed in its place need not have. A ResNet's lost 4.66
points after two epochs where the wider one had had four, and 2.36 where it had had twenty."""


@dataclass(frozen=True)
class Structure:
    """``latency``, ``size``: shares of the teacher's, as they turn out; ``planned``: latency as it is expected.
    ``width``: what it can do, as a share of the teacher's channels; ``time``: an epoch, as a share of the teacher's.
    ``begin``, ``power``: of its learning curve."""

    name: str
    base: str
    latency: float
    size: float
    planned: float
    width: float
    time: float
    begin: float
    power: float
    damage: float

    @property
    def cost(self) -> float:
        """Geometric mean of both shares."""
        return math.sqrt(self.latency * self.size)


class MadeUpTask:
    """Drawn from a seed.

    Attributes:
        margin: that may be lost. ``minutes``: of the search. ``epoch_seconds``: of the teacher's training.
        rows: of the validation split. ``differ``: share of the answers in which a candidate differs from the teacher.
        int8: latency of the teacher's int8 file, as a share.
        structures: narrower ones of the teacher, and ones that are cut, with narrower ones of their own.
    """

    def __init__(self, seed: int, powers: tuple[float, float] = (0.5, 1.4)) -> None:
        self.seed, random = seed, np.random.default_rng(seed)
        self.minutes, self.margin = float(random.choice([8, 12, 20, 25, 40])), float(random.choice([0.005, 0.01]))
        self.epoch_seconds = _between(random, 4, 90)
        self.rows, self.differ = int(random.choice([2000, 4000, 10_000])), float(random.uniform(0.02, 0.08))
        self.int8, self._floor = float(random.uniform(0.35, 0.8)), _between(random, 0.02, 0.1)
        self._edge, self._slope = _between(random, 0.03, 0.4), float(random.uniform(1.5, 9)) * self.margin
        self._gain = float(random.uniform(0, 2)) * self.margin
        self._start, self._power = float(random.uniform(3, 15)) * self.margin, float(random.uniform(*powers))
        self._harmless = min(0.7, self._edge * float(np.exp(random.normal(0.7, 0.4))))
        half, third = _between(random, 0.3, 1), _between(random, 0.3, 1)
        families = [_Family("", 1.0, 1.0, 1.0)]
        if random.random() < _CAN_BE_CUT:
            blocks = float(random.uniform(0.4, 0.6))
            families += [
                _Family("half", 0.35, 1.0, half),
                _Family("third", blocks, blocks, third),
                _Family("half-third", 0.35 * blocks, blocks, half * third),
            ]
        self.structures = [structure for family in families for structure in self._of(random, family)]

    def loss(self, structure: Structure, epochs: float) -> float:
        """What it truly loses after so many epochs in all."""
        return min(
            _LARGEST, self.least_loss(structure) + structure.begin * math.pow(max(epochs, 0.1), -structure.power)
        )

    def least_loss(self, structure: Structure) -> float:
        """The same after any number of them."""
        below = max(0.0, math.log(self._edge / structure.width))
        return self._slope * math.pow(below, 1.3) - self._gain

    def error(self, loss: float, rows: int) -> float:
        """Standard error of a loss on so many rows."""
        return math.sqrt(max(self.differ, 1.5 * abs(loss)) / rows)

    def seen(self, name: str, loss: float, rows: int) -> float:
        """The loss of the file of this name as a split of so many rows shows it: the same whenever it is asked."""
        random = np.random.default_rng([self.seed, rows, int(hash_bytes(name.encode())[:8], 16)])
        return float(random.normal(loss, self.error(loss, rows)))

    @property
    def teachers_cost(self) -> float:
        """Of its int8 file."""
        return math.sqrt(self.int8 * INT8_SIZE)

    def possible(self) -> float:
        """The least cost of a structure that could be proven, had it all the time there is."""
        costs = [
            s.cost
            for s in self.structures
            if self.least_loss(s) + 2 * self.error(self.least_loss(s), self.rows) <= self.margin
        ]
        return min(costs, default=self.teachers_cost)

    def _of(self, random: np.random.Generator, family: _Family) -> list[Structure]:
        """What is cut, if it is, and narrower ones of it; planned too dear or too cheap all alike."""
        bias = float(np.exp(random.normal(0, 0.1)))
        made = [self._structure(random, family.name, family, 1.0, bias)] if family.name else []
        prefix = f"{family.name}-" if family.name else ""
        for share in _SHARES:
            width = share / family.latency  # shares are of the teacher's cost
            if width >= 1:
                continue
            for form, faster in (("", 1.0), ("f", 0.93))[: 2 if not family.name and share <= _WIDEST_FP32 else 1]:
                name = f"{prefix}pruned{100 * share:.0f}{form}"
                made.append(self._structure(random, name, family, width, bias * faster))
        return made

    def _structure(
        self, random: np.random.Generator, name: str, family: _Family, width: float, bias: float
    ) -> Structure:
        damage = 0.05 if width >= self._harmless else 3 * math.log(self._harmless / width)
        planned = self._floor + self.int8 * family.latency * width
        able = width * family.quality
        begin = (self._start / 3 + _PER_DAMAGE * damage) * float(np.exp(random.normal(0, 0.2)))
        return Structure(
            name,
            family.name,
            planned * bias * float(np.exp(random.normal(0, 0.05))),
            INT8_SIZE * family.size * math.pow(width, 0.9) + _LEAST_SIZE,
            planned,
            able,
            max(0.1, family.latency * width),
            begin,
            max(0.2, self._power + float(random.normal(0, 0.15))),
            damage,
        )


@dataclass(frozen=True)
class _Family:
    """``latency``, ``size``: shares of the teacher's; ``quality``: how much of its width is worth as much."""

    name: str
    latency: float
    size: float
    quality: float


_SHARES = (
    *(0.7, 0.6, 0.5, 0.43, 0.36, 0.3, 0.26, 0.22, 0.19, 0.16, 0.14, 0.12),
    *(0.1, 0.09, 0.08, 0.07, 0.06, 0.05, 0.04, 0.03, 0.02),
)
_WIDEST_FP32, _CAN_BE_CUT, _LEAST_SIZE = 0.16, 0.7, 0.002
_PER_DAMAGE = 0.08
"""What an epoch leaves for each unit of damage."""
_LARGEST = 0.9
"""Loss of what knows nothing."""


def _between(random: np.random.Generator, low: float, high: float) -> float:
    """Evenly in its logarithm."""
    return float(np.exp(random.uniform(math.log(low), math.log(high))))
