"""Computations share the machine; a measurement has it alone and is not starved."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tasks.running.machine_lock import machine_lock


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_MACHINE_LOCK", str(tmp_path / "lock"))


class GaveUp(Exception):
    """Raised from on_wait to stop waiting."""


def _give_up() -> None:
    raise GaveUp


def test_shared_holders_exclude_only_the_exclusive_one() -> None:
    with (
        machine_lock(exclusive=False),
        machine_lock(exclusive=False, on_wait=_give_up),
        pytest.raises(GaveUp),
        machine_lock(exclusive=True, on_wait=_give_up),
    ):
        raise AssertionError("a measurement ran beside a computation")
    with machine_lock(exclusive=True):
        for exclusive in (True, False):
            with pytest.raises(GaveUp), machine_lock(exclusive=exclusive, on_wait=_give_up):
                raise AssertionError("something ran beside a measurement")
    with machine_lock(exclusive=True, on_wait=_give_up):
        pass


def test_a_stream_of_computations_does_not_starve_a_measurement() -> None:
    stop = threading.Event()
    measured = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            with machine_lock(exclusive=False):
                time.sleep(0.05)

    def measure() -> None:
        with machine_lock(exclusive=True):
            measured.set()

    threads = [threading.Thread(target=compute) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    waiting = threading.Thread(target=measure)
    waiting.start()
    assert measured.wait(10)
    stop.set()
    for thread in [*threads, waiting]:
        thread.join()
