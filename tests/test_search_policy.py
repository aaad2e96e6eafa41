"""Searches on made-up tasks, by which rules are compared: the product's own decisions, and losses that are known."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks.made_up_tasks import TEACHER_INT8, MadeUpTask
from benchmarks.search_policy import MadeUpShop, searched
from flows.searching.search import explore


def test_the_same_task_is_searched_the_same_way_and_within_its_minutes() -> None:
    for seed in (4, 6):
        one, same = (searched(MadeUpTask(seed)) for _ in range(2))
        assert one == same
        assert one.trainings > 3 and one.seconds < 60 * MadeUpTask(seed).minutes * 1.1
        assert one.proven < TEACHER_INT8 and one.released <= 1.0


def test_structures_lose_more_the_cheaper_they_are_and_less_the_longer_they_train() -> None:
    task = MadeUpTask(1)
    whole = sorted((s for s in task.structures if not s.base), key=lambda s: s.cost)
    losses = [task.loss(s, 10.0) for s in whole]
    assert losses == sorted(losses, reverse=True)
    assert task.loss(whole[0], 10.0) > task.loss(whole[0], 100.0) > task.least_loss(whole[0])
    assert min(s.cost for s in task.structures) <= task.possible() <= TEACHER_INT8


def test_what_is_proven_keeps_the_margin_on_validation() -> None:
    shop = MadeUpShop(MadeUpTask(4))
    ended, _ = explore(shop, shop.setup.settings)
    best = shop.appraisal.cheapest(shop.tally.forms())
    assert ended and best is not None and best.paired is not None
    assert best.paired.bound <= shop.task.margin and shop.losses[best.digest] < 2 * shop.task.margin
