"""What a search does with minutes that are left: variants that are likelier to pass on the test split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from measurements import measured
from search_pieces import BASELINE, file, setup

from flows.searching.assurance import LIKELY, SURE, chance_on_test, likely_forms, without_doubtful
from flows.searching.halving import Rules, Standing, next_move
from model_registry.measurement import Measurement
from tasks.evidence.proportion import loss_bound
from tasks.running.splits import SPLITS

MARGIN = 0.03
RULES = Rules(margin=MARGIN, rungs=3, power=1.0, steepness=0.1, start=0.2)
DATA = setup().data


def test_the_chance_on_the_test_split_is_what_a_simulation_finds() -> None:
    rng = np.random.default_rng(0)
    rows = {"train": 1000, "validation": 360, "test": 1000}
    data = DATA.model_copy(
        update={"splits": tuple(split.model_copy(update={"rows": rows[split.name]}) for split in DATA.splits)}
    )
    told, passed = [], []
    for _ in range(2000):
        worse, better = rng.uniform(0.0, 0.06), 0.01  # whatever a variant may lose in truth
        shares = (worse, better, 1 - worse - better)
        (lost, won, _), (lost_again, won_again, _) = (rng.multinomial(rows[name], shares) for name in SPLITS[2:])
        drawn = measured("drawn", BASELINE, p50=0.1, right=340, flips=(int(won), int(lost)), bytes=50_000)
        told.append(chance_on_test(drawn, MARGIN, data))
        passed.append(loss_bound(int(won_again), int(lost_again), rows["test"]) <= MARGIN)
    chance, came = np.array(told), np.array(passed)
    for low, high in ((0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.0)):
        some = (chance >= low) & (chance <= high)
        assert some.sum() > 50 and abs(came[some].mean() - chance[some].mean()) < 0.13, (low, high)


def test_more_rows_to_test_on_make_it_surer_and_the_baseline_is_sure() -> None:
    form = file("small", 0.1, (0, 4))
    splits = {split.name: split for split in DATA.splits}
    more = splits["test"].model_copy(update={"rows": 30_000})
    many = DATA.model_copy(update={"splits": (splits["train"], splits["validation"], more)})
    assert chance_on_test(form, MARGIN, DATA) < chance_on_test(form, MARGIN, many)
    assert chance_on_test(BASELINE, MARGIN, DATA) == 1.0
    equal = file("same", 0.1, (0, 0))
    assert likely_forms([equal, form], LIKELY, margin=0.02, data=DATA) == [equal]


def test_a_doubtful_variant_that_has_had_all_its_trainings_has_dearer_ones_tried() -> None:
    safe = Standing("safe", 0.5, 3, rung=3, loss=-0.005, spread=0.01, kind="cut")
    best = Standing("best", 0.1, 3, rung=3, loss=0.01, first=0.05, spread=0.018, damage=2.0)
    between = Standing("between", 0.2, 3, seconds=10.0, damage=1.0, ahead=12.0)
    narrower = Standing("narrower", 0.05, 3, seconds=10.0, damage=2.2, ahead=12.0)
    dear = Standing("dear", 0.6, 3, kind="student", seconds=10.0)
    everything = [safe, best, between, dear, narrower]
    assert next_move(everything[:4], RULES, incumbent=0.1, seconds_left=1e9) is None, "nothing is cheaper than the best"
    assert next_move(everything, RULES, incumbent=0.5, seconds_left=1e9) == "narrower"
    surer = without_doubtful(everything, RULES, sure=0.5)
    assert next_move(surer, RULES, incumbent=0.5, seconds_left=1e9) == "between"


def test_a_doubtful_variant_that_may_be_trained_further_is() -> None:
    known = {"rung": 1, "loss": 0.01, "first": 0.01, "spread": 0.018}
    best = Standing("best", 0.1, 3, kind="student", seconds=5.0, finish=10.0, **known)  # type: ignore[arg-type]
    between = Standing("between", 0.2, 3, kind="student", seconds=10.0)
    surer = without_doubtful([best, between], RULES, sure=0.5)
    assert surer == [best, between]
    assert next_move(surer, RULES, incumbent=0.5, seconds_left=1e9) == "best"
    hopeless = replace(best, loss=0.2, rung=3)
    assert without_doubtful([hopeless], RULES, sure=0.5) == [hopeless], "it loses too much anyway"


@pytest.mark.parametrize(("flips", "sure"), [((0, 0), True), ((0, 1), True), ((2, 12), False)])
def test_little_is_lost_surely_and_nearly_the_margin_doubtfully(flips: tuple[int, int], sure: bool) -> None:
    form: Measurement = file("small", 0.1, flips)
    assert bool(likely_forms([form], SURE, margin=MARGIN, data=DATA)) is sure
