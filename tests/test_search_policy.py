"""Searches on made-up tasks, by which rules are compared: the product's own decisions, and losses that are known."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks.made_up_tasks import INHERITED, MadeUpTask
from benchmarks.search_policy import MadeUpShop, searched
from flows.searching.search import explore


def test_the_same_task_is_searched_the_same_way_and_within_its_minutes() -> None:
    for seed in (4, 6):
        one, same = (searched(MadeUpTask(seed)) for _ in range(2))
        assert one == same
        assert one.trainings > 3 and one.seconds < 60 * MadeUpTask(seed).minutes * 1.1
        assert one.proven < MadeUpTask(seed).teachers_cost and one.released <= 1.0


def _with_cuts() -> MadeUpTask:
    tasks = (MadeUpTask(seed) for seed in range(9))
    return next(task for task in tasks if any(s.base for s in task.structures))


def test_structures_lose_more_the_cheaper_they_are_and_less_the_longer_they_train() -> None:
    task = _with_cuts()
    for base in {s.base for s in task.structures}:
        family = sorted((s for s in task.structures if s.base == base), key=lambda s: s.width)
        losses, damages = [task.least_loss(s) for s in family], [s.damage for s in family]
        assert losses == sorted(losses, reverse=True) and damages == sorted(damages, reverse=True)
        narrowest, widest = family[0], family[-1]
        assert narrowest.size < widest.size <= 0.26 and narrowest.time <= widest.time <= 1
        assert task.loss(narrowest, 10.0) > task.loss(narrowest, 100.0) > task.least_loss(narrowest)
    assert min(s.cost for s in task.structures) <= task.possible() <= task.teachers_cost


def test_narrower_ones_begin_with_what_the_cut_network_has_learned() -> None:
    task = _with_cuts()
    shop = MadeUpShop(task)
    explore(shop, shop.setup.settings)
    cut = {c.name: c for c in shop.tally.candidates if c.kind == "cut"}
    made = [c for c in shop.tally.candidates if c.base and c.epochs]
    assert made and all(c.name in shop.inherited for c in made if cut[c.base].epochs)
    assert all(epochs in {INHERITED * e for c in cut.values() for e in c.epochs} for epochs in shop.inherited.values())


def test_what_is_proven_keeps_the_margin_on_validation() -> None:
    shop = MadeUpShop(MadeUpTask(4))
    ended, _ = explore(shop, shop.setup.settings)
    best = shop.appraisal.cheapest(shop.tally.forms())
    assert ended and best is not None and best.paired is not None
    assert best.paired.bound <= shop.task.margin and shop.losses[best.digest] < 2 * shop.task.margin
