"""Which candidate is trained next: the one that saves most for its time, times its chance to keep the margin.

What a candidate costs is known exactly before it is trained (latency and size depend on its structure alone); what it
loses is only guessed from short trainings. So the classic rule of successive halving (train all, keep the best third)
would keep the wrong ones: the largest lose least. Here every candidate has a chance: one that was trained by what it
lost, and by how fast losses fall with further epochs; one that was not by what others lost that narrowing had damaged
more or less before they were trained. The search ends when nothing cheaper than the best proven one has any. Rungs as
in Jamieson and Talwalkar 2016, arXiv:1502.07943.
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
WELL_WITHIN = 0.6
"""Of the margin: what a training aims at, for it may turn out worse, and the test split is another one."""
_CHEAPER = 0.97
"""Of the best proven one's cost: what costs more than this is not cheaper beyond the noise of a timing."""
_ENDLESS = 1e4
_PATIENCE = 0.3
"""Of the seconds that are left: what takes as long is half as good as what takes no time, for what is proven early
leaves time for the next one. This and the numbers below were found in simulation, see benchmarks/search_policy.py."""
_MOST_SECONDS = 3600.0
_HOPE = 1.6
"""Power of the epochs that a long training may gain with at least, as far as it is not to be given up."""
_POWERS_DIFFER = 0.3
"""Standard deviation of the power with which a loss falls in a long training around the one that short ones showed."""
_ITS_OWN = 0.5
"""How much the power counts that a candidate's own loss fell with, beside that of all."""
_FARTHEST = 12.0
"""Times the epochs that it had: further than that no loss is expected to fall, for there is one that stays."""
_WITHIN = 0.9
"""Of the margin: below this a bound counts as within it while it is only expected."""
_WORTH_WHILE = 0.2
"""Chance from which a candidate is trained while there is one that has it."""
_LEFT_OVER = 0.03
"""The same where there is nothing else to do with the minutes."""
_SOON = 0.25
"""Of the seconds that are left, at most, for a look at a family that nothing is expected of."""
_UNKNOWN = 0.5
"""Chance of one that nothing tells anything about."""
_FLATTEST = 0.5
"""Margins that first trainings leave for each unit of damage, at least: what is damaged more loses more."""
_UNSURE, _UNSURE_OF_OTHERS = 0.5, 1.0
"""Standard deviations of the logarithm of a loss that is foreseen from the candidate's family, and from others."""


@dataclass(frozen=True)
class Standing:
    """A candidate as the search sees it.

    ``cost``: the objective (share of the teacher's latency, bytes, or seconds per sample), lower is better. ``rung``:
    trainings done. ``loss``: mean loss of the metric against the baseline, of its best form (fp32, if that loses least:
    what quantization costs on top is the last rung's matter); None while untrained. ``spread``: half-width of its
    one-sided 95 % bound. ``last``: trainings it may have. ``possible``: false for one that exceeds the budget by its
    structure, or failed. ``seconds``: what its next rung will take, about. ``ahead``: epochs it will have had after its
    last rung, as a multiple of those that it had. ``finish``: seconds of training after which its loss may lie well
    within the margin, if all goes well. ``kind``: its family, of which what is damaged more, or cheaper where no damage
    is known, is taken to lose more. ``fresh``: it starts from random weights. ``longer``: trainings of the whole model
    that it may have besides the rungs. ``stalled``: with which power of the epochs its loss still fell in its latest
    training, where that was hardly any; None: it fell, or was not seen yet. ``power``: the same wherever it was seen.
    ``damage``: what narrowing did to the answers before any training (nats, or a share of their variance); None where
    nobody knows. ``first``: its loss after its first training.
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
    power: float | None = None
    damage: float | None = None
    first: float | None = None


@dataclass(frozen=True)
class Rules:
    """What the search aims at and how it trains.

    ``margin``: largest bound of the loss that is tolerable. ``rungs``: trainings of the whole model,
    quantization-aware training not among them. ``power``: what is lost falls with this power of the epochs
    (learning curves are close to power laws: Hestness et al. 2017, arXiv:1712.00409).
    ``steepness``: what first trainings leave for each unit of damage, while that was not seen: it counts like two
    candidates that are a unit and a half apart. ``start``: cost where the first training of all is looked for.
    ``looks_left``: seconds that first trainings may still take before the best of those known goes on: what is spent on
    looking is missing where it proves something.
    """

    margin: float
    rungs: int
    power: float
    steepness: float
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


def chance(standing: Standing, rules: Rules, *, unsure: float = 0.0) -> float:
    """How probable it is that the bound will be within the margin after the last rung; 0 while nothing is known.

    The power of the epochs with which the loss would have to fall for that is compared with the one that was seen, of
    this candidate and of all.

    Args:
        unsure: standard deviation of the loss's logarithm, where it is only foreseen.
    """
    if standing.loss is None:
        return 0.0
    ahead = min(standing.ahead, _FARTHEST)
    if ahead <= 1:
        return float(expected(standing, rules) <= rules.margin)
    least, most = min(standing.loss, 0.0), max(standing.loss, 0.0)
    # What is expected, with the root of what is left of the loss for the unknown: most u^2 + spread u + least.
    room, spread = _WITHIN * rules.margin - least, standing.spread
    half = (spread + math.sqrt(spread**2 + 4 * most * room)) / 2
    if half == 0:
        return 1.0
    left = room / half
    needed = -2 * math.log(left) / math.log(ahead)
    power = rules.power
    if standing.stalled is not None:
        power = standing.stalled
    elif standing.power is not None:
        power += _ITS_OWN * (standing.power - power)
    return NormalDist().cdf((power - needed) / math.hypot(_POWERS_DIFFER, unsure / math.log(ahead)))


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


def foreseen(standing: Standing, standings: Sequence[Standing], rules: Rules) -> tuple[Standing, float] | None:
    """An untrained candidate as it may stand after its first training, and the standard deviation of its loss's
    logarithm; None where nothing tells.

    What first trainings leave grows about linearly with the damage that narrowing did before them: nine epochs of a
    VGG's pupils left -0.3, 1.0, 2.6, 3.3 and 5.1 points at 1.1, 1.9, 3.3, 4.6 and 6.0 nats. The line goes through the
    middle of those of its family, or of all where it is the first one of it (ridge regression towards a slope that is
    usual: Hoerl and Kennard 1970).
    """
    if standing.damage is None:
        return None
    told = [(s.damage, s.first, s) for s in standings if s.damage is not None and s.first is not None]
    family = [one for one in told if one[2].kind == standing.kind]
    points = family or told
    if not points:
        return None
    damages, firsts = [damage for damage, *_ in points], [first for _, first, _ in points]
    middle, loss = sum(damages) / len(points), sum(firsts) / len(points)
    square = sum((damage - middle) ** 2 for damage in damages)
    both = sum((damage - middle) * (first - loss) for damage, first in zip(damages, firsts, strict=True))
    slope = max(_FLATTEST * rules.margin, (both + rules.steepness) / (square + 1.0))
    least = min(0.0, *firsts) if family else min(firsts)  # nobody gains what none has gained
    spread = sum(s.spread for *_, s in points) / len(points)
    guess = replace(standing, loss=max(least, loss + slope * (standing.damage - middle)), spread=spread)
    return guess, _UNSURE if family else _UNSURE_OF_OTHERS


def next_move(
    standings: Sequence[Standing], rules: Rules, *, incumbent: float | None, seconds_left: float
) -> str | None:
    """The candidate to train one rung further, or None if the search is over.

    1. First of all the one that trains fastest of those that are each nearest to ``start`` in their family (``kind``),
       since several trainings are made of it; no fresh network if there is another, since what suits it suits no other.
    2. It is trained further, a little: how fast losses fall decides what is worth a look at all, and tasks differ
       (powers of 0.7 and 1.9 were seen).
    3. Then always the one that saves most for its time, times its chance: of 25 minutes twelve once went to the
       cheapest one, which never came near. First trainings that would take longer than ``looks_left`` come after that.
    4. Where none has a chance, what is expected to lose least is next, if it is not hopeless; while nothing is proven
       at all, even then. After that comes a look at a family that had none.
    5. But before a move that would leave too little time for it, the best of those that may still reach the margin is
       trained: of many structures that were looked at none is an answer.

    Args:
        incumbent: cost of the best variant that keeps the whole budget; None while there is none.
        seconds_left: moves that would take longer are not begun.
    """
    worth = float("inf") if incumbent is None else _CHEAPER * incumbent
    open_ = [s for s in standings if s.possible and s.rung < s.last and s.seconds <= seconds_left and s.cost < worth]
    costs = [s.cost for s in standings if math.isfinite(s.cost)]
    before = incumbent if incumbent is not None else max(costs, default=1.0)
    stakes = Stakes(before, min(seconds_left, _MOST_SECONDS))
    chosen = _choice(standings, open_, rules, stakes, anything_won=incumbent is not None)
    promising = [(s, chance(s, rules)) for s in open_ if 0 < s.rung < rules.rungs + s.longer]
    promising = [(s, likely) for s, likely in promising if s.finish <= seconds_left and likely >= _WORTH_WHILE]
    ranked = [(_value(s, likely, stakes), -s.cost, s) for s, likely in promising]
    leader = max(ranked, key=lambda one: one[:2])[2] if ranked else None
    if leader is None or chosen is None:
        return chosen.name if chosen else None
    late = seconds_left - chosen.seconds - _LOOK_SECONDS < HURRY * leader.finish
    return leader.name if late else chosen.name


def _choice(
    standings: Sequence[Standing], open_: Sequence[Standing], rules: Rules, stakes: Stakes, *, anything_won: bool
) -> Standing | None:
    if all(s.first is None for s in standings):
        nearest = _nearest(standings, open_, rules)
        if nearest is not None:
            return nearest
    begun = [s for s in open_ if s.loss is not None and 0 < s.rung < rules.rungs - 1]
    if begun and not rules.gauged:
        return min(begun, key=lambda s: (s.fresh, s.seconds))
    chances = {s.name: _likely(s, standings, rules) for s in open_}
    affordable = [s for s in open_ if s.loss is not None or s.seconds <= rules.looks_left]
    for allowed, least in ((affordable, _WORTH_WHILE), (open_, _WORTH_WHILE), (open_, _LEFT_OVER)):
        wanted = [s for s in allowed if chances[s.name] >= least]
        if wanted:
            return min(wanted, key=lambda s: (-_value(s, chances[s.name], stakes), s.cost, s.name))
    losses = {s.name: expected(_guess(s, standings, rules)[0], rules) for s in open_}
    rest = open_
    if anything_won:
        rest = [s for s in open_ if s.rung < rules.rungs + s.longer and losses[s.name] <= HOPELESS * rules.margin]
    likeliest = min(rest, key=lambda s: (losses[s.name], s.cost, s.name), default=None)
    soon = [s for s in affordable if s.seconds <= _SOON * stakes.seconds_left]
    return likeliest or _nearest(standings, soon, rules)


def _nearest(standings: Sequence[Standing], open_: Sequence[Standing], rules: Rules) -> Standing | None:
    """Of the families that nothing is known of, each one's candidate nearest to where the search starts; of these the
    fastest to train."""
    known = {s.kind for s in standings if s.first is not None}
    families: dict[str, list[Standing]] = {}
    for standing in open_:
        if standing.kind not in known and standing.loss is None:
            families.setdefault(standing.kind, []).append(standing)
    nearest = [min(f, key=lambda s: (abs(_log(s.cost) - _log(rules.start)), s.cost, s.name)) for f in families.values()]
    return min(nearest, key=lambda s: (s.fresh and not rules.mixed, s.seconds), default=None)


def _likely(standing: Standing, standings: Sequence[Standing], rules: Rules) -> float:
    """The chance of a candidate, trained or not; of one that was not at most that of those of its family that are
    dearer, or damaged less."""
    guess, unsure = _guess(standing, standings, rules)
    likely = _UNKNOWN if guess.loss is None else chance(guess, rules, unsure=unsure)
    if standing.loss is not None:
        return likely
    better = [s for s in standings if s.kind == standing.kind and s.first is not None and _better(s, standing)]
    return min([likely, *(chance(s, rules) for s in better)])


def _better(one: Standing, other: Standing) -> bool:
    """Whether one of the same family ought to lose no more than the other."""
    if one.damage is not None and other.damage is not None:
        return one.damage <= other.damage
    return one.cost >= other.cost


def _guess(standing: Standing, standings: Sequence[Standing], rules: Rules) -> tuple[Standing, float]:
    """The candidate as it stands, or as it may stand after its first training if anything tells."""
    known = (standing, 0.0)
    return known if standing.loss is not None else foreseen(standing, standings, rules) or known


def _value(standing: Standing, likely: float, stakes: Stakes) -> float:
    """What it may save, in logarithms of the cost, times its chance, for its time."""
    if not likely:
        return 0.0
    saved = max(0.0, _log(stakes.before) - _log(standing.cost)) * likely
    return saved / (min(standing.seconds, standing.finish) + _PATIENCE * stakes.seconds_left)


def _log(cost: float) -> float:
    return math.log(max(cost, 1e-12))
