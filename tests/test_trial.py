"""A version on trial: its steps, what stops it, and that it is never half of a release."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import orjson
import pytest

from model_registry.rollout_plan import RolloutPlan
from serving.engines.engine_frames import GZIP, PLAIN, Answered
from serving.engines.packed_body import packed_body
from serving.exceptions import Conflict
from serving.tensors import NUMPY, datatype_of, to_raw
from serving.traffic.answer_agreement import MOST_BYTES, compare_answers
from serving.traffic.steering import Steering
from serving.traffic.trial import ABANDONED_SECONDS, Trial

PLAN = RolloutPlan(shadow_seconds=10, shadow_share=0.5, canary=(0.1, 0.5), step_seconds=20, min_requests=5)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def begun(plan: RolloutPlan = PLAN) -> tuple[Trial, Clock]:
    clock = Clock()
    return Trial(plan, "1", "2", clock), clock


def pass_time(trial: Trial, clock: Clock, seconds: float, *, answers: int = 1) -> None:
    """Time with answers that are right and quick, and an owner who renews."""
    for _ in range(round(2 * seconds)):
        clock.now += 0.5
        trial.act("renew")
        for _ in range(answers):
            trial.old_answered(200, 0.01)
            trial.new_answered(200, 0.01)
        trial.sweep()


def test_it_goes_from_step_to_step_to_its_end() -> None:
    trial, clock = begun()
    seen = []
    for _ in range(52):
        seen.append(str(trial.present))
        pass_time(trial, clock, 1)
    assert [seen.count(step) for step in ("shadow 50 %", "canary 10 %", "canary 50 %")] == [10, 20, 22]
    assert trial.state == "passed" and not trial.over
    assert sum(trial.takes() for _ in range(10)) == 5, "until its owner gives it all of the traffic"


@pytest.mark.parametrize(("share", "taken"), [(0.1, 100), (0.25, 250), (0.07, 70)])
def test_it_takes_exactly_its_share(share: float, taken: int) -> None:
    trial, _ = begun(RolloutPlan(shadow_seconds=0, canary=(share,)))
    assert sum(trial.takes() for _ in range(1000)) == pytest.approx(taken, abs=1)


def test_a_shadow_takes_nothing_and_is_compared_at_most_so_often() -> None:
    trial, clock = begun()
    assert not any(trial.takes() for _ in range(100))
    assert sum(trial.mirrors() for _ in range(100)) == 1
    clock.now += 1
    assert sum(trial.mirrors() for _ in range(100)) == 1


def test_a_step_waits_for_requests_but_not_for_ever() -> None:
    trial, clock = begun()
    pass_time(trial, clock, 99, answers=0)
    assert str(trial.present) == "shadow 50 %"
    pass_time(trial, clock, 1, answers=0)
    assert str(trial.present) == "canary 10 %"


def test_nobody_who_renews_it_ends_it() -> None:
    trial, clock = begun()
    pass_time(trial, clock, 15)
    clock.now += ABANDONED_SECONDS + 1
    trial.sweep()
    assert trial.state == "abandoned" and trial.over and not any(trial.takes() for _ in range(100))
    with pytest.raises(Conflict, match="is over: abandoned"):
        trial.act("promote")


def test_errors_stop_it() -> None:
    trial, clock = begun()
    pass_time(trial, clock, 15)
    for _ in range(5):
        trial.new_failed(400, 400)  # the old version refuses it too: the client's fault
    assert not trial.over
    for _ in range(5):
        trial.new_failed(503, 200)
    assert trial.over and "5 of" in trial.why and "failed" in trial.why


def test_what_came_too_late_counts_where_it_took_long() -> None:
    trial, clock = begun()
    pass_time(trial, clock, 15, answers=4)
    for _ in range(20):
        trial.new_answered(504, 0.012)  # of 10 ms: the client's own time was too short
    assert not trial.over and trial.errors.failures == 0
    for _ in range(10):
        trial.new_answered(504, 1.0)
    assert trial.over and "requests failed" in trial.why


@pytest.mark.parametrize("status", [400, 500, 501])
def test_refusing_what_the_old_version_answers_stops_it(status: int) -> None:
    trial, clock = begun()
    pass_time(trial, clock, 5)
    refusal, same = Answered(1, b'{"error":"no"}', -1, status, PLAIN), answered(y=[[1.0]])
    for old, new in [(refusal, refusal), (refusal, same)] * 50:
        trial.both_answered(old, new)
    assert not trial.over, "what the old one refuses too, and what it alone refuses"
    for _ in range(6):
        trial.both_answered(same, refusal)
    assert trial.over and "6 refused that version 1 answers" in trial.why


def test_whoever_moves_the_traffic_by_hand_ends_it() -> None:
    for version, state, why in [
        ("2", "passed", "version 2 was given the traffic by hand"),
        ("3", "aborted", "version 3 was given the traffic by hand"),
        (None, "aborted", "the traffic was taken away by hand"),
    ]:
        steering = Steering()
        steering.trial, _ = begun()
        steering.routed("1", moved=False)
        assert steering.trial.state == "running"
        steering.routed(version, moved=True)
        assert (steering.trial.state, steering.trial.why) == (state, why)
        assert steering.ended == {"promoted" if version == "2" else "aborted": 1}
        steering.routed("2", moved=version != "2")  # what its owner does then, or the next release
        assert steering.trial is None and steering.ended.total() == 1


def test_slowness_stops_it() -> None:
    trial, clock = begun()
    pass_time(trial, clock, 15, answers=4)
    for _ in range(40):
        trial.new_answered(200, 0.014)
    assert not trial.over, "1.4 times the 95th percentile"
    for _ in range(60):
        trial.new_answered(200, 0.016)
    assert trial.over and "95th percentile of version 1" in trial.why


def test_other_answers_stop_it() -> None:
    trial, _ = begun()
    same, other = answered(y=[[1.0, 2.0]]), answered(y=[[1.0, 3.0]])
    for _ in range(50):
        trial.both_answered(same, same)
    assert not trial.over
    for _ in range(16):
        trial.both_answered(same, other)
    assert trial.over and "differently" in trial.why
    assert trial.largest_difference == pytest.approx(0.5)


def test_it_is_paused_resumed_promoted_and_aborted_by_hand() -> None:
    trial, clock = begun()
    trial.act("pause")
    pass_time(trial, clock, 100)
    assert (trial.state, str(trial.present)) == ("paused", "shadow 50 %")
    trial.act("resume")
    pass_time(trial, clock, 11)
    assert str(trial.present) == "canary 10 %"
    trial.act("promote")
    assert trial.state == "passed"
    with pytest.raises(Conflict, match="is over: passed"):
        trial.act("pause")
    trial.act("abort")
    assert trial.over, "until it has all of the traffic"
    aborted, _ = begun()
    aborted.act("abort")
    assert aborted.over


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({"canary": (0.5, 0.1)}, "greater than the one before"),
        ({"canary": (), "shadow_seconds": 0}, "no step left"),
        ({"canary": (1.0,)}, "less than 1"),
        ({"min_agreement": 1.0}, "less than 1"),
    ],
)
def test_plans_that_are_none(plan: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RolloutPlan.model_validate(plan)


# -- whether answers agree ------------------------------------------------------------------------------------------
def answered(*, raw: bool = False, packing: int = PLAIN, **outputs: object) -> Answered:
    arrays = {
        name: np.array(value, dtype=object) if isinstance(_first(value), bytes) else np.array(value, dtype=np.float32)
        for name, value in outputs.items()
    }
    described = []
    for name, array in arrays.items():
        output: dict[str, object] = {"name": name, "datatype": datatype_of(array), "shape": list(array.shape)}
        if raw:
            output["parameters"] = {"binary_data_size": len(to_raw(array))}
        elif array.dtype == NUMPY["BYTES"]:
            texts: Any = array.ravel().tolist()
            output["data"] = [text.decode() for text in texts]
        else:
            output["data"] = [None if math.isnan(value) else float(value) for value in array.ravel()]
        described.append(output)
    head = orjson.dumps({"model_name": "m", "outputs": described})
    body = head + b"".join(map(to_raw, arrays.values())) if raw else head
    return Answered(1, body, len(head) if raw else -1, 200, packing)


def _first(value: object) -> object:
    return _first(value[0]) if isinstance(value, list) else value


@pytest.mark.parametrize("raw", [False, True])
def test_labels_decide_where_there_are_any(raw: bool) -> None:
    old = answered(raw=raw, logits=[[1.0, 2.0], [3.0, 1.0]], label=[b"b", b"a"])
    new = answered(raw=raw, logits=[[1.9, 2.0], [1.0, 3.0]], label=[b"b", b"b"])
    found = compare_answers(old, new, 0.05)
    assert found is not None and (found.rows, found.differ) == (2, 1)
    assert found.largest == pytest.approx(2 / 3)


@pytest.mark.parametrize("raw", [False, True])
def test_numbers_are_compared_with_the_largest(raw: bool) -> None:
    old, new = answered(raw=raw, y=[[100.0, 1.0], [5.0, 2.0]]), answered(raw=raw, y=[[100.0, 5.0], [5.0, 8.0]])
    found = compare_answers(old, new, 0.05)
    assert found is not None and (found.rows, found.differ) == (2, 1)


def test_what_is_missing_must_be_missing_in_both() -> None:
    nan = float("nan")
    both = compare_answers(answered(y=[[nan, 1.0]]), answered(y=[[nan, 1.0]]), 0.05)
    one = compare_answers(answered(y=[[nan, 1.0]]), answered(y=[[0.0, 1.0]]), 0.05)
    assert both is not None and one is not None and (both.differ, one.differ) == (0, 1)


def test_other_shapes_are_other_answers_and_what_cannot_be_read_is_none() -> None:
    found = compare_answers(answered(y=[[1.0, 2.0]]), answered(y=[[1.0], [2.0]]), 0.05)
    assert found is not None and found.differ == found.rows == 2
    long = answered(y=[[1.0] * (MOST_BYTES // 4)])
    assert compare_answers(long, long, 0.05) is None


def test_an_output_that_is_gone_is_another_answer_and_one_more_is_not() -> None:
    one, other, both = answered(y=[[1.0], [1.0]]), answered(z=[[1.0]]), answered(y=[[1.0], [1.0]], z=[[1.0]])
    gone, more = compare_answers(one, other, 0.05), compare_answers(one, both, 0.05)
    assert gone is not None and (gone.rows, gone.differ) == (2, 2)
    assert more is not None and (more.rows, more.differ) == (2, 0)


@pytest.mark.parametrize("raw", [False, True])
def test_packed_answers_are_compared_too(raw: bool) -> None:
    plain, other = answered(raw=raw, y=[[1.0, 2.0]]), answered(raw=raw, y=[[1.0, 3.0]])
    packed = plain._replace(body=packed_body(bytes(plain.body)), packing=GZIP)
    alike, apart = compare_answers(packed, plain, 0.05), compare_answers(packed, other, 0.05)
    assert alike is not None and apart is not None and (alike.differ, apart.differ) == (0, 1)
    bomb = packed._replace(body=packed_body(bytes(2 * MOST_BYTES)))
    assert compare_answers(bomb, plain, 0.05) is None, "it is not unpacked whole"
