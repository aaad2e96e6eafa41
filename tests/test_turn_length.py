"""Turns of threads: short ones for those who answer, the usual ones for those who load."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable

import pytest

from serving.engines import turn_length
from serving.engines.turn_length import SHORT, _take, take_long_turns, take_short_turns


def in_a_thread(work: Callable[[], None]) -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again below
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def test_turns_are_short_for_a_thread_and_those_it_starts_and_long_again_at_a_low_priority() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    has_them = tuple(map(int, platform.release().split(".")[:2])) >= (6, 12)

    def loads() -> None:
        take_long_turns(10)
        assert os.getpriority(os.PRIO_PROCESS, 0) == 10
        assert _take(0, 10) != SHORT

    def answers() -> None:
        assert take_short_turns() or not has_them
        in_a_thread(loads)
        in_a_thread(lambda: _asserts(take_short_turns() or not has_them))

    in_a_thread(answers)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before, "other threads keep theirs"


def _asserts(holds: bool) -> None:
    assert holds


def test_where_nobody_knows_the_call_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_length, "_CALLS", {})
    assert not take_short_turns()
    monkeypatch.setattr(turn_length, "_CALLS", {platform.machine(): (100_000, 100_001)})
    assert not take_short_turns(), "a kernel that has no such call"
