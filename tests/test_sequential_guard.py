"""A limit that is looked at after every request."""

from __future__ import annotations

import random

import pytest

from serving.traffic.sequential_guard import SequentialGuard


def trips_after(guard: SequentialGuard, share: float, most: int, rng: random.Random) -> int | None:
    for number in range(most):
        guard.add(1, rng.random() < share)
        if guard.tripped:
            return number + 1
    return None


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.3])
def test_it_hardly_ever_stops_what_keeps_the_limit(limit: float) -> None:
    rng = random.Random(0)
    alarms = sum(trips_after(SequentialGuard(limit, 0.05), limit, 1000, rng) is not None for _ in range(300))
    assert alarms <= 300 * 0.05, "at most alpha, though each was looked at 1000 times"


def test_it_stops_what_does_not_and_the_sooner_the_worse_it_is() -> None:
    rng = random.Random(1)
    found = [
        sorted(trips_after(SequentialGuard(0.05, 0.001), share, 5000, rng) or 5000 for _ in range(50))[25]
        for share in (0.1, 0.3, 1.0)
    ]
    assert found[0] < 1000 and found[1] < 60 and found[2] <= 4, found


def test_once_tripped_it_stays_so() -> None:
    guard = SequentialGuard(0.05, 0.001)
    guard.add(10, 10)
    guard.add(100_000, 0)
    assert guard.tripped and guard.share == pytest.approx(10 / 100_010)


def test_many_at_a_time_are_as_many_one_by_one() -> None:
    one, many = SequentialGuard(0.05, 0.001), SequentialGuard(0.05, 0.001)
    for failed in [1, 0, 1, 1, 0, 1]:
        one.add(1, failed)
    many.add(6, 4)
    assert one.tripped == many.tripped
