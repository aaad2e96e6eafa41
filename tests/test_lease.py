"""Leases on a real S3 server: one holder, waiting, renewal, take-over, release."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from patience import wait_for

from model_registry import lease as leasing
from model_registry.lease import LeaseBusy, LeaseLost, LeaseRecord, lease, read_lease
from model_registry.owner import Owner
from model_registry.store import Store, StoreUnavailable

ELSEWHERE = Owner(host="other", space="other boot/other namespace", pid=1, started=1)


def put_foreign(store: Store, key: str, holder: Owner = ELSEWHERE) -> None:
    record = LeaseRecord(key=key, generation=7, holder=holder, token="foreign")
    store.put(f"leases/{key}.json", record.to_json())


def test_held_released_and_the_generation_grows(store: Store) -> None:
    for generation in (1, 2, 3):
        with lease(store, "stages/abc") as held:
            held.check()
            assert held.generation == generation
            present = read_lease(store, "stages/abc")
            assert present is not None and present.holder == Owner.current()
    after = read_lease(store, "stages/abc")
    assert after is not None and after.holder is None


def test_an_uncontended_lease_is_cheap(store: Store) -> None:
    asked: list[str] = []
    store.client.meta.events.register("before-call.s3", lambda model, **_: asked.append(model.name))
    with lease(store, "cheap"):
        pass
    assert asked == ["GetObject", "PutObject"] * 2  # to take it and to let it go; every stage pays this


def test_the_second_is_told_who_holds_it_and_gives_up_in_time(store: Store) -> None:
    told: list[tuple[Owner | None, float]] = []
    with (
        lease(store, "busy"),
        pytest.raises(LeaseBusy, match=rf"held by process {Owner.current().pid} on "),
        lease(store, "busy", wait_seconds=1.0, on_wait=lambda who, waited: told.append((who, waited))),
    ):
        pytest.fail("two holders")
    assert told and all(who == Owner.current() for who, _ in told)
    assert [waited for _, waited in told] == sorted(waited for _, waited in told)
    assert told[-1][1] < 1.0


def test_the_second_gets_it_when_the_first_lets_go(store: Store) -> None:
    order: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        with lease(store, "turn", wait_seconds=20, on_wait=lambda *_: waiting.set()):
            order.append("second")

    thread = threading.Thread(target=second)
    with lease(store, "turn"):
        thread.start()
        assert waiting.wait(10)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]


def test_never_two_holders(store: Store) -> None:
    inside, most, rounds = 0, 0, 0
    guard = threading.Lock()

    def contend() -> None:
        nonlocal inside, most, rounds
        mine = Store(store.uri)
        for _ in range(4):
            with lease(mine, "crowd", wait_seconds=60):
                with guard:
                    inside += 1
                    most, rounds = max(most, inside), rounds + 1
                time.sleep(0.01)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=contend) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (most, rounds) == (1, 20)


@pytest.mark.parametrize("held_before", [False, True])
def test_two_that_see_it_free_at_the_same_moment(
    store: Store, monkeypatch: pytest.MonkeyPatch, held_before: bool
) -> None:
    if held_before:
        with lease(store, "race"):
            pass
    both_have_read = threading.Barrier(2, timeout=10)
    seen = threading.local()
    original = Store.get_with_etag

    def read_together(self: Store, key: str) -> Any:
        found = original(self, key)
        if threading.current_thread().name == "racer" and not hasattr(seen, "first"):
            seen.first = True
            both_have_read.wait()
        return found

    monkeypatch.setattr(Store, "get_with_etag", read_together)
    inside, most, rounds = 0, 0, 0
    guard = threading.Lock()

    def race() -> None:
        nonlocal inside, most, rounds
        with lease(store, "race", wait_seconds=20):
            with guard:
                inside += 1
                most, rounds = max(most, inside), rounds + 1
            time.sleep(0.3)
            with guard:
                inside -= 1

    racers = [threading.Thread(target=race, name="racer") for _ in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(30)
    assert (most, rounds) == (1, 2)


def test_released_on_an_exception_and_on_ctrl_c(store: Store) -> None:
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), lease(store, "raise"):
            raise error
        present = read_lease(store, "raise")
        assert present is not None and present.holder is None


def test_a_killed_holder_on_this_machine_is_replaced_at_once(store: Store) -> None:
    code = (
        "import sys, time\n"
        "from model_registry.lease import lease\n"
        "from model_registry.store import Store\n"
        "with lease(Store.from_environment(), 'killed'):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"held\n"
    child.send_signal(signal.SIGKILL)
    try:
        started = time.monotonic()
        with lease(store, "killed", wait_seconds=5) as held:  # also while it is still a zombie
            assert held.generation == 2
        assert time.monotonic() - started < 5
    finally:
        child.wait()
        child.stdout.close()


def test_a_holder_elsewhere_is_replaced_when_it_stops_renewing(store: Store) -> None:
    put_foreign(store, "foreign")
    with pytest.raises(LeaseBusy), lease(store, "foreign", wait_seconds=0.5, lifetime=1.5):
        pytest.fail("it may still live")
    started = time.monotonic()
    with lease(store, "foreign", wait_seconds=10, lifetime=1.5) as held:
        assert held.generation == 8
    assert 1.4 < time.monotonic() - started < 8


def test_a_record_nobody_can_read_is_healed(store: Store) -> None:
    store.put("leases/torn.json", b'{"key": "to')
    with lease(store, "torn", wait_seconds=10, lifetime=0.5) as held:
        assert held.generation == 1


def test_renewal_keeps_it_beyond_its_lifetime(store: Store) -> None:
    with lease(store, "long", lifetime=2.0, renewal=0.1) as held:
        with pytest.raises(LeaseBusy), lease(store, "long", wait_seconds=4.5, lifetime=2.0):
            pytest.fail("taken although it was renewed")
        held.check()
        present = read_lease(store, "long")
        assert present is not None and present.renewals >= 3


def test_a_lost_lease_says_who_took_it_and_is_not_released(store: Store) -> None:
    with lease(store, "lost", renewal=0.05) as held:
        put_foreign(store, "lost")

        def lost() -> bool:
            try:
                held.check()
            except LeaseLost as error:
                return "taken over by process 1 on other" in str(error)
            return False

        wait_for(lost)
    present = read_lease(store, "lost")
    assert present is not None and present.holder == ELSEWHERE  # the other's, untouched


def test_an_outage_is_survived_until_the_lifetime_is_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    down = threading.Event()
    original = Store.get_with_etag

    def flaky(self: Store, key: str) -> Any:
        if down.is_set():
            raise StoreUnavailable("S3 is away")
        return original(self, key)

    monkeypatch.setattr(Store, "get_with_etag", flaky)
    ahead = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead, sleep=time.sleep)
    monkeypatch.setattr(leasing, "time", clock)

    def renewals() -> int:
        present = read_lease(store, "outage")
        assert present is not None
        return present.renewals

    with lease(store, "outage", lifetime=1000.0, renewal=0.05) as held:
        down.set()
        ahead = 900.0
        held.check()  # short: nobody can have taken it
        down.clear()
        before = renewals()
        wait_for(lambda: renewals() >= before + 2)  # the first one may have begun before the outage
        down.set()
        ahead = 1800.0
        held.check()  # the renewal in between counts
        ahead = 2000.0
        with pytest.raises(LeaseLost, match="not renewed for"):
            held.check()
    down.clear()
    present = read_lease(store, "outage")
    assert present is not None and present.holder is not None  # could not be released, runs out by itself


def test_our_own_write_whose_answer_was_lost_counts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Store.put_if_absent

    def answer_lost(self: Store, key: str, data: bytes) -> bool:
        original(self, key, data)
        return False  # as after a retry inside the client: the object is there, and it is ours

    monkeypatch.setattr(Store, "put_if_absent", answer_lost)
    with lease(store, "echo") as held:
        assert held.generation == 1


@pytest.mark.parametrize("key", ["", "../x", "a//b", "a b", "/a", "a/.b", "a/"])
def test_keys_are_checked(store: Store, key: str) -> None:
    with pytest.raises(ValueError, match="lease key"), lease(store, key):
        pytest.fail("accepted")
