"""The order of a search: who is trained further, and when it ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.searching.candidate import Candidate
from flows.searching.halving import Rules, Standing, chance, enough, expected, foreseen, hoped, next_move, rung_epochs

MARGIN = 0.005
RULES = Rules(margin=MARGIN, rungs=3, power=1.0, steepness=0.02, start=2.0)


def move(*standings: Standing, incumbent: float | None = None, seconds_left: float = 1e9) -> str | None:
    return next_move(standings, RULES, incumbent=incumbent, seconds_left=seconds_left)


def made(name: str, cost: float, *, rung: int = 0, **known: float | bool | str) -> Standing:
    """After so many rungs of three, each of which has three times as many epochs in all as the one before."""
    ahead, first = 3.0 ** max(0, 3 - rung), known.get("loss")
    settings = {"ahead": ahead, "first": first, **known}
    return Standing(name=name, cost=cost, last=4, rung=rung, **settings)  # type: ignore[arg-type]


def test_the_first_training_is_where_the_answer_is_expected() -> None:
    assert move(made("small", 1.0), made("large", 3.9), made("middle", 2.5)) == "middle"
    assert move(made("small", 1.0), made("large", 3.9)) == "large", "nearest in logarithms"


def test_one_that_nothing_is_known_of_has_an_even_chance() -> None:
    known = made("middle", 2.0, rung=1, loss=0.0)
    students = [Standing(name=f"s{cost}", cost=cost, last=4, kind="student") for cost in (0.5, 1.5)]
    assert move(known, *students) == "s0.5"
    assert move(known, *students, incumbent=16.0) == "middle", "an eighth for certain, or a quarter of a quarter"


def test_before_a_second_look_the_first_candidate_tells_how_fast_losses_fall() -> None:
    known = made("middle", 2.0, rung=1, loss=0.02)
    others = [made("small", 1.0), Standing(name="cut", cost=1.5, last=4, kind="cut")]
    unknown = replace(RULES, gauged=False)
    assert next_move([*others, made("middle", 2.0)], unknown, incumbent=None, seconds_left=1e9) == "middle"
    assert next_move([known, *others], unknown, incumbent=None, seconds_left=1e9) == "middle"
    assert next_move([known, *others], RULES, incumbent=None, seconds_left=1e9) == "small"
    assert next_move([known, *others], replace(unknown, rungs=2), incumbent=None, seconds_left=1e9) == "small", (
        "its next training would be its last"
    )


def test_what_is_soon_proven_goes_before_what_saves_a_little_more() -> None:
    wide = made("wide", 2.0, rung=2, loss=0.004, seconds=60.0, finish=60.0)
    narrow = made("narrow", 1.8, rung=2, loss=0.005, seconds=540.0, finish=540.0)
    assert move(wide, narrow, incumbent=4.0, seconds_left=700.0) == "wide"
    assert move(replace(wide, cost=3.9), narrow, incumbent=4.0, seconds_left=700.0) == "narrow", (
        "it saves next to nothing"
    )


def test_the_fastest_to_train_is_first_and_a_fresh_network_only_when_the_mix_is_known() -> None:
    ours = made("narrow", 2.0, seconds=30.0)
    shallow = Standing(name="shallow", cost=2.0, last=4, kind="cut", seconds=10.0)
    fresh = Standing(name="fresh", cost=2.0, last=4, kind="student", seconds=1.0, fresh=True)
    assert move(ours, fresh, shallow) == "fresh"
    assert move(ours, shallow) == "shallow"
    unmixed = replace(RULES, mixed=False)
    for standings, first in (((ours, fresh, shallow), "shallow"), ((ours, fresh), "narrow"), ((fresh,), "fresh")):
        assert next_move(standings, unmixed, incumbent=None, seconds_left=1e9) == first


def test_what_may_reach_the_margin_is_not_left_without_the_time_for_it() -> None:
    known = made("middle", 2.0, rung=1, loss=0.003, seconds=90.0, finish=100.0)
    students = [Standing(name="s1", cost=1.5, last=4, kind="student", seconds=20.0)]
    assert move(known, *students, incumbent=4.0, seconds_left=160.0) == "s1"
    assert move(known, *students, incumbent=4.0, seconds_left=150.0) == "middle", "20 s, to make it, 1.25 times 100 s"
    assert move(known, *students, incumbent=4.0, seconds_left=95.0) == "s1", "it is late anyway"
    assert move(known, *students, incumbent=2.0, seconds_left=150.0) == "s1", "it would win nothing"


def test_what_is_nearly_proven_goes_on_before_a_hopeless_look() -> None:
    known = made("middle", 2.0, rung=3, loss=0.003, spread=0.0022, seconds=40.0, finish=20.0)
    look = Standing(name="s1", cost=1.5, last=4, kind="student", seconds=20.0)
    assert move(known, look, incumbent=4.0, seconds_left=48.0) == "s1", "it has had its trainings"
    longer = replace(known, longer=1, last=5, ahead=1.2)
    assert move(longer, look, incumbent=4.0, seconds_left=48.0) == "middle", "no time is left for both"
    assert move(longer, look, incumbent=4.0, seconds_left=300.0) == "s1"
    assert move(longer, incumbent=4.0, seconds_left=300.0) == "middle"
    assert move(replace(longer, ahead=1.0), incumbent=4.0, seconds_left=300.0) == "middle", "it is not hopeless"


def test_looking_ends_where_its_time_does() -> None:
    known = made("middle", 2.0, rung=1, loss=0.003, seconds=90.0)
    students = [Standing(name="s1", cost=1.5, last=4, kind="student", seconds=20.0)]
    smaller = made("small", 1.0, seconds=20.0)

    def next_with(looks_left: float, *standings: Standing) -> str | None:
        rules = replace(RULES, looks_left=looks_left)
        return next_move(standings, rules, incumbent=4.0, seconds_left=1e9)

    assert next_with(30.0, known, smaller, *students) == "small"
    assert next_with(10.0, known, smaller, *students) == "middle", "it may pass, and goes on"
    hopeless = made("middle", 2.0, rung=1, loss=0.9, seconds=90.0)
    assert next_with(10.0, hopeless, smaller, *students) == "s1", "looking is better than nothing"
    assert next_with(10.0, smaller, *students) is not None, "nothing is known yet"


def _ladder(*costs: float) -> list[Standing]:
    """Damaged the more the cheaper they are."""
    return [made(f"c{cost:g}", cost, damage=6 / cost) for cost in costs]


def test_what_was_damaged_a_little_more_than_one_that_passes_is_looked_at() -> None:
    passing = made("c2", 2.0, rung=1, loss=0.0, damage=3.0)
    assert move(*_ladder(1.0, 1.5, 3.0, 4.5, 6.0), passing) == "c1.5", "c1 may lose twelve margins"
    seen = made("c1.5", 1.5, rung=1, loss=0.05, damage=4.0)
    assert move(*_ladder(0.5, 1.7, 3.0), passing, seen, incumbent=2.2) == "c1.7", "c0.5 is damaged three times as much"


def test_after_a_failure_what_was_damaged_less_is_looked_at() -> None:
    failing = made("c2", 2.0, rung=1, loss=0.5, damage=3.0)
    ladder = _ladder(1.0, 1.5, 3.0, 4.5, 6.0)
    assert move(*ladder, failing) == "c6", "of what is expected to fail the least"
    assert move(*ladder, failing, incumbent=7.0) is None, "or nothing, where something is won"
    close = replace(failing, loss=0.04, first=0.04)
    assert move(*ladder, close, incumbent=12.0) == "c3"


def test_what_is_foreseen_of_a_family_is_told_by_its_own_or_else_by_all() -> None:
    ours = [made("a", 3.0, rung=1, loss=0.01, damage=1.0), made("b", 2.0, rung=2, loss=0.002, first=0.05, damage=3.0)]
    theirs = made("cut", 2.5, rung=1, loss=0.2, damage=0.0, kind="cut")
    new = made("c", 2.5, damage=2.0)
    guess, unsure = foreseen(new, [*ours, theirs, new], RULES) or (new, 0.0)
    assert guess.loss == pytest.approx(0.03), "what first trainings left, half-way between"
    further, _ = foreseen(replace(new, damage=5.0), [*ours, theirs], RULES) or (new, 0.0)
    assert further.loss == pytest.approx(0.03 + 3 * (0.04 + RULES.steepness) / 3), (
        "two and the usual slope: ridge regression"
    )
    other, less_sure = foreseen(replace(new, kind="third"), [*ours, theirs], RULES) or (new, 0.0)
    assert other.loss is not None and other.loss > 0.08 and less_sure > unsure
    falling = [replace(ours[0], first=0.05), replace(ours[1], first=0.01)]
    flat, _ = foreseen(replace(new, damage=4.0), falling, RULES) or (new, 0.0)
    assert flat.loss is not None and flat.loss > 0.03, "nothing loses less for being damaged more"
    assert foreseen(replace(new, damage=None), ours, RULES) is None and foreseen(new, [new], RULES) is None
    cut, _ = foreseen(replace(new, damage=0.0, kind="half"), ours[1:], RULES) or (new, 0.0)
    assert cut.loss == 0.05, "nobody gains what none has gained"


def test_the_teacher_s_own_training_is_a_move_when_there_is_nothing_to_narrow() -> None:
    teacher = Standing(name="teacher", cost=2.0, last=4, rung=3, loss=0.0, kind="teacher")
    assert move(teacher, incumbent=4.0) == "teacher"


def test_what_failed_says_as_much_of_what_ought_to_lose_more() -> None:
    failed = Standing(name="s4", cost=4.0, last=4, rung=1, loss=0.9, first=0.9, ahead=9.0, kind="student")
    narrower = [Standing(name=f"s{cost}", cost=cost, last=4, kind="student", seconds=30.0) for cost in (1.0, 2.0)]
    wider = Standing(name="s5", cost=5.0, last=4, kind="student", seconds=30.0)
    assert move(failed, *narrower, wider, incumbent=9.0) == "s5"
    assert move(failed, *narrower, incumbent=9.0) is None


def test_before_a_search_ends_each_family_has_had_a_look() -> None:
    failed = made("narrow", 1.0, rung=1, loss=0.9, damage=1.0)
    cut = made("cut", 2.0, damage=0.5, kind="cut", seconds=30.0)
    assert move(failed, cut, incumbent=3.0) == "cut"
    assert move(failed, cut, incumbent=3.0, seconds_left=100.0) is None, "it would leave too little to train it on"
    assert move(failed, made("other", 2.0, damage=0.9, seconds=30.0), incumbent=3.0) is None, "of its family"


def test_what_failed_before_its_cost_was_known_stands_in_no_way() -> None:
    failed = Standing(name="failed", cost=float("inf"), last=4, possible=False, kind="cut")
    sure, hopeless = made("sure", 2.0, rung=2, loss=0.001), made("hopeless", 1.0, rung=1, loss=0.9)
    assert move(failed, sure, hopeless, made("dearest", 4.0, rung=3, loss=0.9)) == "sure"


def test_a_candidate_whose_own_loss_hardly_falls_has_less_of_a_chance() -> None:
    known = made("known", 1.0, rung=2, loss=0.012)
    slow, fast = replace(known, power=0.4), replace(known, power=1.6)
    assert chance(slow, RULES) < 0.3 < chance(known, RULES) < 0.9 < chance(fast, RULES)


def test_no_loss_is_expected_to_fall_for_ever() -> None:
    narrow = made("narrow", 1.0, rung=1, loss=0.4, ahead=80.0)
    assert chance(narrow, RULES) < 0.05, "eighty times the epochs would divide it by eighty"
    assert chance(narrow, RULES) == chance(replace(narrow, ahead=300.0), RULES)


def test_students_are_one_family_where_the_same_is_scaled() -> None:
    def family(base: str = "", **scale: object) -> str:
        return Candidate("s", "student", "", {"scale": scale}, 3, base=base).family

    assert family(width=0.5) == family(width=0.25)
    assert len({family(width=0.5), family(depth=0.5), family(width=0.5, depth=0.5), family("s1", width=0.5)}) == 4
    assert family(network="strided", width=0.5) != family(network="shallow", width=0.5)
    assert (
        Candidate("p", "pruned", "", {"ratios": {"conv1": 0.5}}, 3).family == Candidate("q", "pruned", "", {}, 3).family
    )


def test_the_cheapest_that_may_reach_the_margin_goes_on() -> None:
    large, middle = made("large", 3.0, rung=1, loss=0.0), made("middle", 2.0, rung=1, loss=0.03)
    small = made("small", 1.0, rung=1, loss=0.09)
    assert expected(middle, RULES) == pytest.approx(0.03 / 9)
    assert move(large, middle, small) == "middle"


def test_what_counts_is_the_bound_and_not_the_mean() -> None:
    """Of 0.1 points that may be 1.1, half a point is not proven; a gain makes up for some doubt."""
    done = made("small", 1.0, rung=3, loss=0.001, spread=0.01)
    assert expected(done, RULES) == pytest.approx(0.011)
    assert move(done, incumbent=2.0) is None
    gaining = made("small", 1.0, rung=3, loss=-0.01, spread=0.012)
    assert expected(gaining, RULES) == pytest.approx(0.002)
    assert move(gaining, incumbent=2.0) == "small"
    once_more = made("small", 1.0, rung=2, loss=0.0, spread=0.01)  # a third of the flips, a root of three of the spread
    assert expected(once_more, RULES) == pytest.approx(0.01 / 3**0.5)


def test_what_is_enough_lies_well_within_the_margin() -> None:
    far = made("small", 1.0, rung=1, loss=0.02)
    assert expected(replace(far, ahead=enough(far, RULES)), RULES) <= 0.6 * MARGIN
    assert enough(far, RULES) == pytest.approx(6.7, rel=0.1)
    assert enough(made("fine", 1.0, rung=1, loss=0.0), RULES) == 1.0
    assert enough(made("new", 1.0), RULES) == float("inf")
    assert enough(made("bad", 1.0, rung=1, loss=0.9), replace(RULES, power=0.3)) == float("inf")


def test_hope_takes_a_long_training_to_gain_more_than_short_ones_told() -> None:
    far, slow, fast = made("small", 1.0, rung=1, loss=0.02), replace(RULES, power=0.6), replace(RULES, power=1.8)
    assert hoped(far, slow) == hoped(far, RULES) < enough(far, RULES) < enough(far, slow)
    assert hoped(far, fast) < hoped(far, RULES) and enough(far, fast) == enough(far, RULES)


def test_one_that_disappoints_gives_way_to_the_next_larger() -> None:
    middle = made("middle", 2.0, rung=2, loss=0.025)
    assert move(made("large", 3.0, rung=1, loss=0.0), middle) == "large"


def test_trainings_that_gain_less_than_hoped_for_raise_what_is_expected() -> None:
    known = made("small", 1.0, rung=1, loss=0.03)
    assert expected(known, RULES) == pytest.approx(0.03 / 9)
    assert expected(known, replace(RULES, power=0.5)) == pytest.approx(0.03 / 3)


def test_what_is_left_of_the_time_goes_to_what_is_not_hopeless() -> None:
    near, far = made("near", 1.0, rung=1, loss=0.1), made("far", 0.5, rung=1, loss=0.9)
    assert move(near, far, incumbent=2.0) == "near"
    assert move(far, incumbent=2.0) is None
    assert move(far) == "far", "without anything proven even that"


def test_only_what_is_cheaper_than_the_best_proven_one_is_of_interest() -> None:
    ladder = (made("large", 3.0, rung=1, loss=0.0), made("small", 1.0, rung=1, loss=0.01))
    assert move(*ladder, incumbent=2.0) == "small"
    assert move(*ladder, incumbent=1.0) is None
    assert move(*ladder, incumbent=1.02) is None, "not cheaper beyond the noise"


def test_the_search_ends_when_nothing_cheaper_may_reach_the_margin() -> None:
    assert move(made("small", 1.0, rung=3, loss=0.02), incumbent=2.0) is None


def test_without_anything_proven_the_nearest_goes_on() -> None:
    far, near = made("small", 1.0, rung=3, loss=0.03), made("large", 2.0, rung=3, loss=0.02)
    assert move(far, near) == "large"
    assert move(made("small", 1.0, rung=4, loss=0.03), made("large", 2.0, rung=4, loss=0.02)) is None


def test_a_move_that_takes_longer_than_is_left_is_not_begun() -> None:
    slow = made("slow", 1.0, seconds=100.0)
    assert move(slow, seconds_left=99.0) is None
    assert move(slow, seconds_left=101.0) == "slow"


def test_impossible_ones_are_left_alone() -> None:
    assert move(made("wide", 1.0, possible=False)) is None


@pytest.mark.parametrize(
    ("epochs", "rungs", "wanted"), [(13, 3, (1, 3, 9)), (18, 3, (1, 4, 13)), (5, 1, (5,)), (2, 3, (1, 1, 1))]
)
def test_epochs_of_the_rungs(epochs: int, rungs: int, wanted: tuple[int, ...]) -> None:
    assert rung_epochs(epochs, rungs, 3.0) == wanted


@given(
    st.lists(
        st.tuples(st.floats(0.1, 10), st.floats(-0.02, 0.3), st.one_of(st.none(), st.floats(0, 12))),
        min_size=1,
        max_size=8,
    ),
    st.one_of(st.none(), st.floats(0.1, 10)),
)
def test_every_search_ends(ladder: list[tuple[float, float, float | None]], incumbent: float | None) -> None:
    """Whatever training brings, each move takes one candidate one rung further and there are finitely many."""
    standings = {
        f"c{i}": replace(made(f"c{i}", cost), damage=damage, kind=f"{i % 3}")
        for i, (cost, _, damage) in enumerate(ladder)
    }
    losses = {f"c{i}": loss for i, (_, loss, _) in enumerate(ladder)}
    for _ in range(4 * len(ladder) + 1):
        name = move(*standings.values(), incumbent=incumbent)
        if name is None:
            return
        old = standings[name]
        assert incumbent is None or old.cost < incumbent
        new = made(name, old.cost, rung=old.rung + 1, loss=losses[name] / (old.rung + 1))
        first = new.loss if old.first is None else old.first
        standings[name] = replace(new, damage=old.damage, kind=old.kind, first=first)
    raise AssertionError("the search goes on for ever")


def test_what_stands_still_is_not_expected_to_get_better() -> None:
    stuck = made("stuck", 2.0, rung=2, loss=0.006, spread=0.001)
    assert expected(stuck, RULES) < MARGIN and hoped(stuck, RULES) < 10
    still = replace(stuck, stalled=0.0)
    assert expected(still, RULES) == pytest.approx(0.007) and hoped(still, RULES) == float("inf")
    larger = made("larger", 3.0)
    assert move(stuck, larger, incumbent=6.0) == "stuck" and move(still, larger, incumbent=6.0) == "larger"


def test_of_those_that_may_pass_the_one_goes_on_that_saves_most_times_its_chance() -> None:
    sure = made("sure", 0.069, rung=2, loss=0.004, spread=0.001)
    risky = made("risky", 0.055, rung=2, loss=0.0138, spread=0.0009)
    assert expected(risky, RULES) == pytest.approx(0.0051, abs=1e-4) and chance(risky, RULES) < 0.4
    near = replace(risky, loss=0.0105)
    assert 0.6 < chance(near, RULES) < 0.7
    assert move(sure, near, incumbent=0.32) == "sure", "a fifth cheaper is not worth a third of the chance"
    assert move(sure, replace(near, cost=0.02), incumbent=0.32) == "risky", "three times cheaper is"
    assert move(sure, near, incumbent=0.0695) == "risky", "the other one wins nothing"


def test_a_chance_is_that_of_the_power_with_which_the_loss_would_have_to_fall() -> None:
    # Three times the epochs: 0.0135 and nothing else falls to 0.9 of the margin with a power of 1, which is that seen.
    even = made("even", 2.0, rung=2, loss=0.0135)
    assert chance(even, RULES) == pytest.approx(0.5) and chance(even, replace(RULES, power=1.3)) == pytest.approx(
        0.841, abs=1e-3
    )
    assert chance(replace(even, spread=0.001), RULES) < 0.45 and chance(replace(even, stalled=0.0), RULES) < 1e-3
    assert chance(replace(even, loss=-0.001), RULES) > 0.99 > 0 == chance(replace(even, loss=None), RULES)
    trained = replace(even, ahead=1.0, loss=0.004, spread=0.001)
    assert (chance(trained, RULES), chance(replace(trained, loss=0.0041), RULES)) == (1.0, 0.0), "nothing is left to do"
