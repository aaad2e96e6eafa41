"""Which candidate is trained next: bisection over each family's costs, then the cheapest one that may still pass.

What a candidate costs is known exactly before it is trained (latency and size depend on its structure alone); what it
loses is only guessed from short trainings, and grows as candidates of one family get cheaper. So the classic rule of
successive halving (train all, keep the best third) would keep the wrong ones: the largest lose least. Here short
trainings halve, in logarithms of the cost, what lies between the dearest one that loses too much and the cheapest one
that may pass; then the one of those that may pass is trained further that wins most for its time, its chance counted,
and the search ends when nothing cheaper than the best proven one may pass. Rungs as in Jamieson and Talwalkar 2016,
arXiv:1502.07943.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

HOPELESS = 3.0
"""Where a candidate's expected loss is this number of margins, it is not trained further while anything may be won."""

HURRY = 1.25
"""Whoever may reach the margin gets this many times the training that this is hoped to take, before others are looked
at."""
_LOOK_SECONDS = 10.0
"""To make, time and measure another structure, about."""
WELL_WITHIN = 0.4
"""Of the margin: what a training aims at, for it may turn out worse, and the test split is another one."""
_CHEAPER = 0.97
"""Of the best proven one's cost: what costs more than this is not cheaper beyond the noise of a timing."""
_ENDLESS = 1e4
_PATIENCE = 0.3
"""Of the seconds that are left: what takes as long is half as good as what takes no time. Found in simulation, see
benchmarks/search_policy.py: what is proven early leaves time for the next one."""
_MOST_SECONDS = 3600.0
_HOPE = 1.6
"""Power of the epochs that a long training may gain with at least, as far as it is not to be given up."""
_POWERS_DIFFER = 0.3
"""Standard deviation of the power with which a loss falls in a long training around the one that short ones showed."""
_WITHIN = 0.9
"""Of the margin: below this a bound counts as within it while it is only expected."""
_LIKELY, _WORTH_TRYING = 0.5, 0.1
"""Chances from which what costs more than a candidate is left alone, and from which it is trained on. All three found
in simulation, as above."""


@dataclass(frozen=True)
class Standing:
    """A candidate as the search sees it.

    ``cost``: the objective (share of the teacher's latency, bytes, or seconds per sample), lower is better. ``rung``:
    trainings done. ``loss``: mean loss of the metric against the baseline, of its best form (fp32, if that loses least:
    what quantization costs on top is the last rung's matter); None while untrained. ``spread``: half-width of its
    one-sided 95 % bound. ``last``: trainings it may have. ``possible``: false for one that exceeds the budget by its
    structure, or failed. ``seconds``: what its next rung will take, about. ``ahead``: epochs it will have had after its
    last rung, as a multiple of those that it had. ``finish``: seconds of training after which its loss may lie well
    within the margin, if all goes well. ``kind``: losses are compared within one kind only, for what starts
    from the teacher's weights is far ahead after a short training, and what is shallower may lose less than what is
    narrower and as cheap. ``fresh``: it starts from random weights. ``longer``: trainings of the whole model that it
    may have besides the rungs. ``stalled``: with which power of the epochs its loss still fell in its latest training,
    where that was hardly any; None: it fell, or was not seen yet.
    """

    name: str
    cost: float
    last: int
    rung: int = 0
    loss: float | None = None
    spread: float = 0.0
    possible: bool = True
    seconds: float = 0.0
    ahead: float = 1.0
    finish: float = float("inf")
    kind: str = ""
    fresh: bool = False
    longer: int = 0
    stalled: float | None = None


@dataclass(frozen=True)
class Rules:
    """What the search aims at and how it trains.

    ``margin``: largest bound of the loss that is tolerable. ``rungs``: trainings of the whole model,
    quantization-aware training not among them. ``power``: what is lost falls with this power of the epochs
    (learning curves are close to power laws: Hestness et al. 2017, arXiv:1712.00409).
    ``start``: cost where each family's first training is looked for. ``looks_left``: seconds that first trainings may
    still take before the best of those known goes on: what is spent on looking is missing where it proves something.
    """

    margin: float
    rungs: int
    power: float
    start: float
    looks_left: float = float("inf")
    gauged: bool = True
    """Whether a candidate was trained twice, so that ``power`` is what was seen."""
    mixed: bool = True
    """Whether a training has shown which mix of labels and teacher is best."""


@dataclass(frozen=True)
class Stakes:
    """``before``: what the best proven one costs, or the dearest where nothing is proven."""

    before: float
    seconds_left: float


def rung_epochs(epochs: int, rungs: int, eta: float) -> tuple[int, ...]:
    """Epochs of each rung, ``epochs`` in all, each about ``eta`` times the one before, none without any."""
    weights = [eta**i for i in range(rungs)]
    shares = [max(1, round(epochs * w / sum(weights))) for w in weights]
    shares[-1] = max(1, epochs - sum(shares[:-1]))
    return tuple(shares)


def expected(standing: Standing, rules: Rules) -> float:
    """The 95 % bound of the loss that is to be expected after the last rung; infinite while nothing is known.

    The guess: further epochs divide what is lost, and with it the number of answers that differ, with whose root the
    bound's half-width shrinks. It is a hopeful one, and is meant to be: a candidate wrongly given up is lost, one
    wrongly trained costs a rung. One whose loss stood still while its epochs doubled has what it can have: a pupil of a
    VGG lost 0.008 after 12 epochs, 0.009 after 24 and 0.0095 after 200.
    """
    if standing.loss is None:
        return float("inf")
    left: float = standing.ahead ** (rules.power if standing.stalled is None else standing.stalled)
    return max(standing.loss, 0.0) / left + min(standing.loss, 0.0) + standing.spread / math.sqrt(left)


def chance(standing: Standing, rules: Rules) -> float:
    """How probable it is that the bound will be within the margin after the last rung; 0 while nothing is known.

    The power of the epochs with which the loss would have to fall for that is compared with the one that was seen.
    """
    if standing.loss is None:
        return 0.0
    if standing.ahead <= 1:
        return float(expected(standing, rules) <= rules.margin)
    least, most = min(standing.loss, 0.0), max(standing.loss, 0.0)
    # What is expected, with the root of what is left of the loss for the unknown: most u^2 + spread u + least.
    room, spread = _WITHIN * rules.margin - least, standing.spread
    if most == spread == 0:
        return 1.0
    left = 2 * room / (spread + math.sqrt(spread**2 + 4 * most * room))
    needed = -2 * math.log(left) / math.log(standing.ahead)
    power = rules.power if standing.stalled is None else standing.stalled
    return NormalDist().cdf((power - needed) / _POWERS_DIFFER)


def enough(standing: Standing, rules: Rules) -> float:
    """By how much its epochs must be multiplied for what is expected to lie well within the margin; 1: it does.

    Here hope would end a training too early: more epochs are taken to gain with a power of 1 at most.
    """
    return _times(standing, replace(rules, power=min(1.0, rules.power)))


def hoped(standing: Standing, rules: Rules) -> float:
    """The same at its best: what is to be left for a candidate that is not to be given up.

    A long training, whose learning rate falls to its end, gains more than short ones tell: a VGG's pupils went from
    their first epoch to the second with a power of 0.6, and with one of more than 1.5 in one go of three; a ResNet's at
    a third of its blocks lost 0.065 after two epochs (0.8 from the first to the second), and nothing after fifteen.
    """
    return _times(standing, replace(rules, power=max(_HOPE, rules.power)))


def _times(standing: Standing, rules: Rules) -> float:
    if standing.loss is None:
        return float("inf")
    factor = 1.0
    while expected(replace(standing, ahead=factor), rules) > WELL_WITHIN * rules.margin:
        factor *= 1.1
        if factor > _ENDLESS:
            return float("inf")
    return factor


def next_move(
    standings: Sequence[Standing], rules: Rules, *, incumbent: float | None, seconds_left: float
) -> str | None:
    """The candidate to train one rung further, or None if the search is over.

    1. Each family (``kind``) has one short training, of its candidate nearest to ``start``: the fastest one to train
       first, since several trainings are made of the very first; it is no fresh network if there is another, since
       what suits it suits no other. But what costs more than a candidate that may still reach the margin is not looked
       at while that may.
    2. Before a second training of another kind or cost, the first one is trained further, a little: how fast losses
       fall decides what is worth a look at all, and tasks differ (powers of 0.7 and 1.9 were seen).
    3. In the family that promises most: bisection with short trainings, then of those that may pass the one goes on
       that saves most for its time, times its chance: of 25 minutes twelve once went to the cheapest one, which never
       came near. The next family follows when nothing is left to do there.
    4. What is not hopeless is trained further, the most promising first.
    5. But before a move that would leave too little time for it, the best of those that may still reach the margin is
       trained: of many structures that were looked at none is an answer.

    First trainings that would take longer than ``looks_left`` come after all of that.

    Args:
        incumbent: cost of the best variant that keeps the whole budget; None while there is none.
        seconds_left: moves that would take longer are not begun.
    """
    worth = float("inf") if incumbent is None else _CHEAPER * incumbent
    open_ = [s for s in standings if s.possible and s.rung < s.last and s.seconds <= seconds_left and s.cost < worth]
    promising = [s for s in open_ if 0 < s.rung < rules.rungs + s.longer and s.finish <= seconds_left]
    before = incumbent if incumbent is not None else max((s.cost for s in standings), default=1.0)
    stakes = Stakes(before, min(seconds_left, _MOST_SECONDS))
    leader = max(promising, key=lambda s: (_saving(s, rules, stakes), -s.cost), default=None)
    name, won = None, incumbent is not None
    if promising:
        limit = _CHEAPER * min(s.cost for s in promising)
        name = _choice(standings, [s for s in open_ if s.rung or s.cost < limit], rules, stakes, anything_won=won)
    if name is None:  # none of those that are promising either, which hope alone has made so
        name = _choice(standings, open_, rules, stakes, anything_won=won)
    other = next((s for s in open_ if s.name == name), None)
    if leader is None or other is None or other is leader:
        return name
    late = seconds_left - other.seconds - _LOOK_SECONDS < HURRY * leader.finish
    return leader.name if late else name


def _choice(
    standings: Sequence[Standing], open_: Sequence[Standing], rules: Rules, stakes: Stakes, *, anything_won: bool
) -> str | None:
    begun = [s for s in open_ if s.loss is not None and 0 < s.rung < rules.rungs - 1]
    if begun and not rules.gauged:
        return min(begun, key=lambda s: (s.fresh, s.seconds)).name
    affordable = [s for s in open_ if s.loss is not None or s.seconds <= rules.looks_left]
    if any(s.loss is not None and s.rung for s in standings):
        name = _best_move(standings, affordable, rules, stakes, anything_won=anything_won)
        if name is not None:
            return name
    return _best_move(standings, open_, rules, stakes, anything_won=anything_won)


def _best_move(
    standings: Sequence[Standing], open_: Sequence[Standing], rules: Rules, stakes: Stakes, *, anything_won: bool
) -> str | None:
    families: dict[str, list[Standing]] = {}
    for standing in standings:
        families.setdefault(standing.kind, []).append(standing)
    new = [[s for s in members if s in open_] for members in families.values() if all(s.loss is None for s in members)]
    nearest = [min(f, key=lambda s: (abs(_log(s.cost) - _log(rules.start)), s.cost, s.name)) for f in new if f]
    if nearest:
        return min(nearest, key=lambda s: (s.fresh and not rules.mixed, s.seconds)).name
    for members in sorted(families.values(), key=lambda f: min(_promise(s, rules, stakes) for s in f)):
        name = _within(members, [s for s in members if s in open_], rules, stakes)
        if name is not None:
            return name
    rest = [s for s in open_ if s.loss is not None]
    if anything_won:
        rest = [s for s in rest if s.rung < rules.rungs + s.longer and expected(s, rules) <= HOPELESS * rules.margin]
    return min(rest, key=lambda s: (expected(s, rules), s.cost, s.name)).name if rest else None


def _within(members: Sequence[Standing], open_: Sequence[Standing], rules: Rules, stakes: Stakes) -> str | None:
    """The next move within a family of which something is known."""
    known = [(s, chance(s, rules)) for s in members if s.loss is not None]
    ceiling = min((s.cost for s, likely in known if likely >= _LIKELY), default=float("inf"))
    floor = max((s.cost for s, likely in known if likely < _LIKELY and s.cost < ceiling), default=0.0)
    between = sorted((s for s in open_ if s.loss is None and floor < s.cost < ceiling), key=lambda s: (s.cost, s.name))
    if between:
        low, high = floor or between[0].cost, ceiling if math.isfinite(ceiling) else between[-1].cost
        middle = (_log(low) + _log(high)) / 2
        return min(between, key=lambda s: (abs(_log(s.cost) - middle), s.cost, s.name)).name
    near = [s for s in open_ if chance(s, rules) >= _WORTH_TRYING]
    return min(near, key=lambda s: (-_saving(s, rules, stakes), s.cost, s.name)).name if near else None


def _promise(standing: Standing, rules: Rules, stakes: Stakes) -> tuple[float, float, float]:
    """For sorting, best first: what may pass by what it saves; after that the rest, by what it is expected to lose."""
    loss = expected(standing, rules)
    return (0.0 if loss <= rules.margin else loss, -_saving(standing, rules, stakes), standing.cost)


def _saving(standing: Standing, rules: Rules, stakes: Stakes) -> float:
    """What it may save, in logarithms of the cost, times its chance, for its time."""
    likely = chance(standing, rules)
    if not likely or standing.cost <= 0:
        return 0.0
    saved = max(0.0, _log(stakes.before) - _log(standing.cost)) * likely
    return saved / (min(standing.seconds, standing.finish) + _PATIENCE * stakes.seconds_left)


def _log(cost: float) -> float:
    return math.log(max(cost, 1e-12))
