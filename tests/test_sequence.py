"""The fixed sequence in which variants meet the test split: its order, its error, and what the child makes of it."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gate_cases import BASE, Case, blob_scores, loss, measure_quickly
from measured_models import linear, make_variant
from measurements import measured

from model_registry.measurement import Measurement
from model_registry.store import Store
from tasks.evidence.arrays import publish_arrays
from tasks.evidence.decision import Decision
from tasks.evidence.paired import compare_paired, summarise_pairs
from tasks.evidence.split_gap import split_gap
from tasks.running.errors import GateFailed
from tasks.validate import GateSpec, decision_of
from tasks.validate.choice import choose
from tasks.validate.sequence import MOST_ON_FRONT, MOST_TESTED, fixed_sequence, front_sequence, passed_in_order

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks.selection_error import ALIKE, MARGIN, searches, sequences


def variant(name: str, p50: float, bound: float, **fields: Any) -> Measurement:
    return measured(name, BASE, p50=p50, paired=loss(bound), **fields)


def names(sequence: tuple[Measurement, ...]) -> list[str]:
    return [m.name for m in sequence]


# -- the order, on numbers alone ---------------------------------------------------------------------------------
def test_safer_and_dearer_ones_stand_before_the_best() -> None:
    safe, middle, best = variant("safe", 2.0, 0.004), variant("middle", 1.0, 0.01), variant("best", 0.5, 0.018)
    beaten = variant("beaten", 1.5, 0.012)  # dearer than the middle one and less safe
    failing = variant("failing", 0.1, 0.05)
    choice = choose(GateSpec(), [best, failing, beaten, middle, safe], BASE, {})
    assert names(choice.sequence) == ["safe", "middle", "best"] and choice.chosen is best
    assert names(choose(GateSpec(), [best, failing], BASE, {}).sequence) == ["best"]


def test_the_safest_best_goes_alone_and_nobody_twice() -> None:
    best, slow = variant("best", 0.5, 0.004), variant("slow", 2.0, 0.018)
    assert names(fixed_sequence("latency", [slow, best, best], best, MARGIN)) == ["best"]
    safe = variant("safe", 2.0, 0.002)
    same = safe.model_copy(update={"name": "safe again"})
    assert len(fixed_sequence("latency", [safe, same, best], best, MARGIN)) == 2


def test_what_is_certain_stands_before_what_has_a_low_bound_by_luck() -> None:
    int8, pupil = variant("int8", 2.0, 0.004), variant("pupil", 0.5, 0.003)
    assert pupil.paired is not None
    lucky = pupil.model_copy(update={"paired": pupil.paired.model_copy(update={"difference": 0.009})})
    assert lucky.paired and lucky.paired.bound < 0.004, "it gains 0.9 points, give or take 1.2"
    best = variant("best", 0.4, 0.018)
    assert names(fixed_sequence("latency", [int8, lucky, best], best, MARGIN)) == ["int8", "pupil", "best"]


def test_one_as_fast_within_noise_but_safer_stands_before_the_smaller_one() -> None:
    fast = variant("fast", 1.00, 0.005, bytes=900)
    small = variant("small", 1.03, 0.015, bytes=100)
    assert names(choose(GateSpec(), [fast, small], BASE, {}).sequence) == ["fast", "small"]


@pytest.mark.parametrize("objective", ["latency", "size", "throughput", "both"])
def test_of_many_the_safest_the_cheapest_and_two_well_apart_are_tested(objective: Any) -> None:
    many = [variant(f"v{n:02}", 2.0 ** (-n / 4), 0.003 + n * 0.0009, bytes=10_000 - 500 * n) for n in range(17)]
    many = [
        m.model_copy(update={"throughput": m.throughput.model_copy(update={"value": 1000 / m.p50_ms})}) for m in many
    ]
    sequence = choose(GateSpec(objective=objective), many, BASE, {}).sequence
    assert len(sequence) == MOST_TESTED and sequence[0] is many[0] and sequence[-1] is many[16]
    assert all(a.p50_ms > b.p50_ms for a, b in pairwise(sequence))
    assert all(a.paired and b.paired and a.paired.bound < b.paired.bound for a, b in pairwise(sequence))
    if objective in ("latency", "throughput"):  # a factor of 16 in three equal steps
        assert names(sequence) == ["v00", "v05", "v11", "v16"]


def test_a_front_holds_what_nothing_safer_equals_at_latency_and_size() -> None:
    safe, fast = variant("safe", 2.0, 0.002, bytes=400), variant("fast", 0.5, 0.010, bytes=500)
    small, beaten = variant("small", 3.0, 0.012, bytes=100), variant("beaten", 2.1, 0.004, bytes=400)
    same = variant("same", 0.49, 0.011, bytes=495)  # within the noise of a timing
    choice = choose(GateSpec(objective="front"), [small, beaten, fast, same, safe], BASE, {})
    assert names(choice.sequence) == ["safe", "fast", "small"]
    assert choice.chosen is same  # the best at both, by a hair; of the sequence it is the best of those that passed
    assert "5 of 5 variants pass on validation, 3 of them on the front" in choice.reason


def test_of_a_long_front_the_ends_stay_and_the_crowd_is_thinned_out() -> None:
    many = [variant(f"v{n:02}", 4.0 * 0.9**n, 0.003 + n * 0.0005, bytes=1000) for n in range(12)]
    many.append(variant("smallest", 4.0, 0.018, bytes=10))
    kept = names(front_sequence(many, MARGIN))
    assert len(kept) == MOST_ON_FRONT and {"v00", "v11", "smallest"} <= set(kept)


def test_nobody_is_asked_behind_the_first_that_fails() -> None:
    members, asked = (variant("a", 3.0, 0.01), variant("b", 2.0, 0.01), variant("c", 1.0, 0.01)), []

    def passes(m: Measurement) -> bool:
        asked.append(m.name)
        return m.name != "b"

    assert passed_in_order(members, passes) == 1 and asked == ["a", "b"]
    assert passed_in_order(members, lambda m: True) == 3 and passed_in_order(members, lambda m: False) == 0


# -- the error, by simulation ------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("alike", [0.0, ALIKE])
def test_at_most_one_run_in_twenty_releases_a_variant_that_breaks_its_margin(alike: float) -> None:
    """Of 30 candidates that all lose exactly the margin, and of sequences that are bad from some place on."""
    repeats, limit = 300, 0.05 + 2.6 * (0.05 * 0.95 / 300) ** 0.5
    found = searches(repeats, [MARGIN] * 30, rows=500, alike=alike, seed=1)
    assert found.runs == repeats and 0 < found.bad <= limit * repeats
    for parts in ((1.0, 1.0, 1.0, 1.0), (1.0, 1.2, 1.4, 1.6), (0.1, 1.0, 1.0, 1.0), (0.1, 0.2, 1.0, 1.2)):
        found = sequences(repeats, [part * MARGIN for part in parts], rows=500, alike=alike, seed=2)
        assert found.bad <= limit * repeats, parts
        assert found.bad_on_front <= limit * repeats, parts
        if alike == 0.0 and parts[0] == parts[-1]:  # to ask all and take the cheapest that passes would not do
            assert found.all_bad > 1.5 * limit * repeats


def test_a_sequence_releases_where_the_cheapest_alone_would_be_refused() -> None:
    truths = [float(x) for x in np.linspace(0.0, 1.2 * MARGIN, 15)]
    found = searches(60, truths, rows=800, alike=ALIKE, seed=3)
    assert found.released > found.alone_released + 10 and found.bad <= 6


# -- do the splits differ? ---------------------------------------------------------------------------------------
def test_splits_differ_where_the_losses_do_by_more_than_chance() -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(1000):
        one, other = (rng.choice([-1.0, 0.0, 1.0], p=[0.02, 0.94, 0.04], size=size) for size in (400, 700))
        alarms += split_gap(one, other).real
    assert alarms <= 22  # 1 % of 1000, and more than three standard errors
    worse = rng.choice([-1.0, 0.0, 1.0], p=[0.02, 0.88, 0.10], size=700)
    gap = split_gap(one, worse)
    assert gap.real and gap.difference == pytest.approx(worse.mean() - one.mean())
    assert split_gap(worse, one).difference == -gap.difference and split_gap(worse, one).p == gap.p


def test_no_flip_at_all_is_no_difference_and_one_flip_in_one_split_is_chance() -> None:
    nothing = np.zeros(300)
    assert split_gap(nothing, nothing).p == 1.0
    assert not split_gap(nothing, np.eye(1, 300)[0]).real
    with pytest.raises(ValueError, match="two splits of 0 and 300"):
        split_gap(np.zeros(0), nothing)


# -- the child, on real files ------------------------------------------------------------------------------------
class Line(Case):
    """The good one, dearer than a bad one whose validation scores are made up: it seems good there."""

    def __init__(self, store: Store, folder: Path) -> None:
        super().__init__(store, folder)
        base = blob_scores(linear())
        lucky = base.copy()
        lucky[np.flatnonzero(base)[:1]] = 0.0  # one flip: less safe than the good one, within the margin
        scores = publish_arrays(store, "scores.npz", score=lucky)
        self.lucky = self.candidates[1].model_copy(
            update={
                "scores": scores,
                "metric": summarise_pairs(lucky, name="accuracy", better="higher"),
                "paired": compare_paired(lucky, base, better="higher", reference=self.baseline.digest),
            }
        )
        third = make_variant(store, "third", linear(noise=1.6, seed=4))
        self.third = self.lucky.model_copy(
            update={
                "digest": third.digest,
                "name": "third",
                "speedup": measure_quickly(store, third, linear(), self.baseline, p50=0.2).speedup,
                "paired": compare_paired(
                    np.where(np.arange(300) == np.flatnonzero(base)[1], 0.0, lucky), base,
                    better="higher", reference=self.baseline.digest,
                ),
            }
        )  # fmt: skip
        self.candidates = [self.candidates[0], self.lucky, self.third]


@pytest.fixture
def line(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Line:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    return Line(store, tmp_path)


SPEC = GateSpec(margin=0.025, per_class_margin=None)


@pytest.mark.timeout(120)
def test_of_a_front_all_that_passed_are_proven_and_the_best_of_them_is_chosen(line: Line) -> None:
    safe = line.candidates[0]
    twin = make_variant(line.store, "twin", linear(), width=32)  # answers like the good one, larger and faster
    fast = measure_quickly(line.store, twin, linear(), line.baseline, p50=0.01)
    front = SPEC.model_copy(update={"objective": "front"})
    decision = decision_of(line.run(front, candidates=[safe, fast, line.lucky]))
    assert [(m.name, m.verdict) for m in decision.sequence] == [
        ("twin", "passed"),
        ("good", "passed"),
        ("bad", "failed"),
    ]
    assert decision.front == (fast.digest, safe.digest) and decision.chosen == fast.digest
    assert decision.reason.endswith("on the test split bad did not pass, and twin is the best that did")
    assert decision.scored[0].digest == fast.digest
    assert decision_of(line.run(SPEC)).front == ()


@pytest.mark.timeout(120)
def test_the_cheapest_that_passed_is_released_and_nobody_is_asked_behind_a_failure(line: Line) -> None:
    outcome = line.run(SPEC)
    decision = decision_of(outcome)
    good, bad, third = decision.sequence
    assert (good.verdict, bad.verdict, third.verdict) == ("passed", "failed", "not asked")
    assert decision.status == "passed" and decision.chosen == good.digest == line.good.digest
    assert bad.failed == ("non_inferior_to_baseline",) and third.test is None and third.gap is None
    assert good.test and bad.test and bad.test.bound > 0.025 > good.test.bound
    assert good.validation == line.candidates[0].paired and (good.bytes, bad.name) == (line.good.size, "bad")
    # Flips, gates and roles are those of the released one.
    assert {g.gate: g.passed for g in decision.gates}["non_inferior_to_baseline"]
    assert [(s.role, s.digest) for s in decision.scored] == [
        ("chosen", line.good.digest),
        ("baseline", line.baseline.digest),
    ]
    assert "3 of 3 variants pass on validation; third is" in decision.reason
    assert decision.reason.endswith("on the test split bad did not pass, and good is the cheapest that did")
    # The bad one had one flip on validation and has many on test.
    assert good.gap and not good.gap.real and bad.gap and bad.gap.real and decision.gap == bad
    assert line.run(SPEC).status == "reused"
    assert line.run(SPEC, candidates=line.candidates[:2]).status == "computed"  # the whole sequence is in the key
    # Released, it is the champion of the next run: the same answer, and nothing is asked again.
    assert line.run(SPEC, champion=line.candidates[0]).status == "reused"


@pytest.mark.timeout(120)
def test_a_champion_among_them_that_is_not_chosen_again_is_the_opponent(line: Line) -> None:
    """The champion is the last of the sequence and fails now: who replaces it is compared with it."""
    decision = decision_of(line.run(SPEC, candidates=line.candidates[:2], champion=line.lucky))
    assert (decision.chosen, decision.champion) == (line.good.digest, line.bad.digest)
    chosen = next(s for s in decision.scored if s.role == "chosen")
    assert chosen.to_champion is not None and chosen.to_champion.reference == line.bad.digest
    assert "non_inferior_to_champion" in [g.gate for g in decision.gates]


@pytest.mark.timeout(120)
def test_where_the_first_fails_the_run_is_refused(line: Line) -> None:
    with pytest.raises(GateFailed) as caught:
        line.run(SPEC, candidates=[line.lucky, line.third])
    decision = Decision.model_validate(caught.value.details["decision"])
    assert decision.status == "refused" and decision.chosen == line.bad.digest
    assert [m.verdict for m in decision.sequence] == ["failed", "not asked"]
    text = str(caught.value)
    assert "bad is refused on the test split" in text and "FAIL  non_inferior_to_baseline" in text
    assert "bad, the safest of the 2 that were to meet the test split in turn, did not pass" in text
