"""Which variant of a set answers: by what a request wants, and by how much there is to do."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from pydantic import ValidationError

from model_registry.variant_set import SetMember
from serving.engines.lane_pace import LanePace
from serving.exceptions import InvalidRequest, NotReady, Overloaded
from serving.traffic.degradation import CALM_SECONDS, Degradation, ladder_of
from serving.traffic.variant_choice import SetVariant, choose_variant
from serving.wishes import Wishes, as_bytes, wishes_from_bytes, wishes_of_headers, wishes_of_parameters


@dataclass
class Loaded:
    version: str
    digest: str
    state: str = "ready"
    pace: LanePace = field(default_factory=LanePace)


def variant(version: str, accuracy: float, ms: float, metric: str = "accuracy", higher: bool = True) -> SetVariant:
    return SetVariant(Loaded(version, version * 64), f"v{version}", metric, higher, accuracy, ms)


BEST, MIDDLE, CHEAP = variant("1", 0.97, 4.0), variant("2", 0.96, 1.0), variant("3", 0.95, 0.2)


def loaded(member: SetVariant) -> Loaded:
    assert isinstance(member.loaded, Loaded)
    return member.loaded


@pytest.fixture(autouse=True)
def _as_new() -> None:
    for member in (BEST, MIDDLE, CHEAP):
        loaded(member).state, loaded(member).pace = "ready", LanePace()


def chosen(**wishes: float | str) -> str:
    return choose_variant([BEST, MIDDLE, CHEAP], Wishes(**wishes)).loaded.version  # type: ignore[arg-type]


def test_the_most_accurate_in_time_or_the_fastest_that_is_accurate_enough() -> None:
    assert chosen(max_latency_ms=5) == "1"
    assert chosen(max_latency_ms=2) == "2"
    assert chosen(max_latency_ms=0.3) == "3"
    assert chosen(min_accuracy=0.955) == "2"
    assert chosen(min_accuracy=0.9) == "3"
    assert chosen(min_accuracy=0.955, max_latency_ms=5) == "1"
    assert chosen(variant="2") == chosen(variant="v2") == chosen(variant="22222222") == "2"


def test_latency_is_what_it_is_now() -> None:
    loaded(BEST).pace = LanePace(quiet_seconds=0.0005)
    assert chosen(max_latency_ms=0.6) == "1", "here it is faster than where it was measured"
    loaded(BEST).pace = LanePace(quiet_seconds=0.0005, wait_seconds=0.001)
    assert chosen(max_latency_ms=1.1) == "2", "there are others before it"


def test_what_cannot_be_had_is_refused_with_what_there_is() -> None:
    with pytest.raises(InvalidRequest, match=r"version 3 takes 0\.2 ms"):
        chosen(max_latency_ms=0.1)
    with pytest.raises(InvalidRequest, match=r"no variant reaches accuracy 0\.99; .*version 1, has 0\.97"):
        chosen(min_accuracy=0.99)
    with pytest.raises(InvalidRequest, match=r"no variant '9'.*v1 \(version 1\), v2"):
        chosen(variant="9")
    with pytest.raises(InvalidRequest, match="no variant '222'"):
        chosen(variant="222")
    with pytest.raises(InvalidRequest, match="has mean error; name a variant"):
        choose_variant([variant("1", 0.2, 1.0, "mean error", False)], Wishes(min_accuracy=0.1))


def test_what_cannot_be_had_now_may_be_had_later() -> None:
    loaded(CHEAP).pace = LanePace(wait_seconds=0.01)
    with pytest.raises(Overloaded):
        chosen(max_latency_ms=0.3)
    loaded(CHEAP).state = "restarting"
    with pytest.raises(NotReady):
        chosen(variant="3")
    assert chosen(min_accuracy=0.9) == "2"


def test_of_errors_less_is_better() -> None:
    few, many = variant("1", 0.2, 2.0, "mean error", False), variant("2", 0.3, 1.0, "mean error", False)
    assert choose_variant([few, many], Wishes(max_latency_ms=5)).loaded.version == "1"


def test_wishes_are_the_same_in_headers_and_parameters_and_travel_whole() -> None:
    headers = {b"winnow-min-accuracy": b"0.9", b"winnow-max-latency-ms": b"2", b"winnow-variant": b"v2"}
    wishes = wishes_of_headers(headers)
    assert wishes == wishes_of_parameters({"min_accuracy": 0.9, "max_latency_ms": 2, "variant": "v2"})
    assert wishes is not None and wishes_from_bytes(as_bytes(wishes)) == wishes
    assert wishes_of_headers({b"host": b"x"}) is None
    assert Wishes("1", 0.9).and_(Wishes(None, 0.8, 3.0)) == Wishes("1", 0.8, 3.0)


@pytest.mark.parametrize(
    "parameters",
    [
        {"min_accuracy": "0.9"},
        {"min_accuracy": True},
        {"min_accuracy": float("nan")},
        {"max_latency_ms": 0},
        {"max_latency_ms": -1.0},
        {"variant": 3},
        {"variant": ""},
        {"variant": "x" * 201},
    ],
)
def test_wishes_that_are_none_are_refused(parameters: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match=f"parameter '{next(iter(parameters))}' must be"):
        wishes_of_parameters(parameters)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def busy(member: SetVariant, wait: float = 1.0, each: float = 0.01) -> None:
    loaded(member).pace = LanePace(0.001, each, wait, 0.1)


def test_it_goes_down_when_too_long_a_wait_is_expected_and_up_when_all_could_be_done() -> None:
    clock = Clock()
    ladder = Degradation(ladder_of([CHEAP, BEST, MIDDLE], "1"), clock)
    assert ladder.member() is BEST
    busy(BEST)
    assert ladder.member() is MIDDLE and ladder.level == 1
    busy(MIDDLE)
    assert ladder.member() is MIDDLE, "it has not had the time to show anything"
    clock.now += 0.2
    assert ladder.member() is CHEAP
    busy(BEST, wait=0.0)
    busy(MIDDLE, wait=0.0)
    for _ in range(20):  # 100 a second at 10 ms each: more than it could do
        for _ in range(50):
            ladder.member()
        clock.now += 0.5
        ladder.sweep()
    assert ladder.level == 2
    seconds = 0.0
    while ladder.level == 2:  # 40 a second: it could
        for _ in range(20):
            ladder.member()
        clock.now += 0.5
        seconds += 0.5
        ladder.sweep()
        assert seconds < 10
    assert seconds >= CALM_SECONDS and ladder.level == 1


def test_it_does_not_swing_while_the_load_stays() -> None:
    clock, levels = Clock(), list[int]()
    ladder = Degradation(ladder_of([BEST, MIDDLE], "1"), clock)
    busy(BEST)
    for _ in range(60):
        for _ in range(60):  # 120 a second, of which the best could do 100
            levels.append(ladder.level)
            ladder.member()
        busy(BEST, wait=0.0)  # its queue is empty, for it gets nothing
        clock.now += 0.5
        ladder.sweep()
    assert levels[0] == 0 and set(levels[1:]) == {1}


def test_what_is_not_there_or_full_is_passed_over_at_once() -> None:
    ladder = Degradation(ladder_of([BEST, MIDDLE, CHEAP], "1"), Clock())
    loaded(BEST).state = loaded(MIDDLE).state = "restarting"
    assert ladder.member() is CHEAP
    loaded(BEST).state, loaded(MIDDLE).state = "ready", "ready"
    ladder = Degradation(ladder_of([BEST, MIDDLE, CHEAP], "1"), Clock())
    loaded(BEST).pace = loaded(MIDDLE).pace = LanePace(fullness=1.0)
    assert ladder.member() is MIDDLE
    assert ladder.member() is CHEAP


def test_only_what_is_faster_than_the_variant_with_the_traffic_is_below_it() -> None:
    assert ladder_of([BEST, MIDDLE, CHEAP], "2") == [MIDDLE, CHEAP]
    assert ladder_of([BEST, MIDDLE, CHEAP], "3") == [CHEAP]


@pytest.mark.parametrize(
    ("name", "value"),
    [("value", "NaN"), ("value", float("nan")), ("value", float("-inf")), ("p50_ms", 0), ("p50_ms", float("inf"))],
)
def test_what_was_not_measured_is_in_no_set(name: str, value: object) -> None:
    known = {"version": 1, "digest": "a" * 64, "name": "v1", "metric": "accuracy", "better": "higher", "bytes": 1}
    assert SetMember.model_validate({**known, "value": 0.9, "p50_ms": 1.0}).value == 0.9
    with pytest.raises(ValidationError, match=name):
        SetMember.model_validate({**known, "value": 0.9, "p50_ms": 1.0, name: value})
