"""Which candidate is trained further: successive halving as a best-first search for the cheapest one within the margin.

What a candidate costs is known exactly before it is trained (latency and size depend on its structure alone); what it
loses is only guessed from short trainings. So the classic rule (train all, keep the best third) would keep the wrong
ones: the largest lose least. Here the cheapest candidate that still may reach the margin goes on, and the search ends
when nothing cheaper than the best proven one may. Rungs as in Jamieson and Talwalkar 2016, arXiv:1502.07943.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

HOPELESS = 3.0
"""Where a candidate's expected loss is this number of margins, no cheaper one is tried."""


@dataclass(frozen=True)
class Standing:
    """A candidate as the search sees it.

    ``cost``: the objective (share of the teacher's latency, bytes, or seconds per sample), lower is better. ``rung``:
    trainings done. ``loss``: mean loss of the metric against the baseline, of its best form (fp32, if that loses least:
    what quantization costs on top is the last rung's matter); None while untrained. ``spread``: half-width of its
    one-sided 95 % bound. ``last``: trainings it may have. ``possible``: false for one that exceeds the budget by its
    structure, or failed. ``seconds``: what its next rung will take, about. ``kind``: losses are compared within one
    kind only, for what starts from the teacher's weights is far ahead after a short training, and what is shallower may
    lose less than what is narrower and as cheap.
    """

    name: str
    cost: float
    last: int
    rung: int = 0
    loss: float | None = None
    spread: float = 0.0
    possible: bool = True
    seconds: float = 0.0
    kind: str = ""


def rung_epochs(epochs: int, rungs: int, eta: float) -> tuple[int, ...]:
    """Epochs of each rung, ``epochs`` in all, each about ``eta`` times the one before, none without any."""
    weights = [eta**i for i in range(rungs)]
    shares = [max(1, round(epochs * w / sum(weights))) for w in weights]
    shares[-1] = max(1, epochs - sum(shares[:-1]))
    return tuple(shares)


def expected(standing: Standing, *, rungs: int, eta: float) -> float:
    """The 95 % bound of the loss that is to be expected after the last rung; infinite while nothing is known.

    The guess: each further rung divides what is lost by ``eta``, and with it the number of answers that differ, with
    whose root the bound's half-width shrinks. It is a hopeful one, and is meant to be: a candidate wrongly given up is
    lost, one wrongly trained costs a rung.
    """
    if standing.loss is None:
        return float("inf")
    left = max(0, rungs - standing.rung)
    return max(standing.loss, 0.0) / eta**left + min(standing.loss, 0.0) + standing.spread / math.sqrt(eta**left)


def next_move(
    standings: Sequence[Standing],
    *,
    margin: float,
    rungs: int,
    eta: float,
    incumbent: float | None,
    seconds_left: float,
) -> str | None:
    """The candidate to train one rung further, or None if the search is over.

    Args:
        margin: largest bound of the loss that is tolerable.
        rungs: trainings of the whole model, quantization-aware training not among them.
        incumbent: cost of the best variant that keeps the whole budget; None while there is none.
        seconds_left: moves that would take longer are not begun.
    """
    open_ = [
        s
        for s in standings
        if s.possible and s.rung < s.last and s.seconds <= seconds_left and (incumbent is None or s.cost < incumbent)
    ]
    hopeless: dict[str, float] = {}
    for s in standings:
        if s.loss is not None and expected(s, rungs=rungs, eta=eta) > HOPELESS * margin:
            hopeless[s.kind] = max(s.cost, hopeless.get(s.kind, 0.0))
    unknown = [s for s in open_ if s.loss is None and s.cost > hopeless.get(s.kind, 0.0)]
    if unknown:  # from the dearest to the cheapest: the loss grows on the way, and tells when to stop
        return max(unknown, key=lambda s: (s.cost, s.name)).name
    known = [s for s in open_ if s.loss is not None]
    near = [s for s in known if expected(s, rungs=rungs, eta=eta) <= margin]
    if near:
        return min(near, key=lambda s: (s.cost, s.name)).name
    if incumbent is None and known:
        return min(known, key=lambda s: (expected(s, rungs=rungs, eta=eta), s.cost, s.name)).name
    return None
