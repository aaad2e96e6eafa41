"""The ledger: one pending entry, decided once, rollback one further back each time, nothing unreadable ignored."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_store import Memory

from model_registry.ledger import (
    ChampionMoved,
    Entry,
    Ledger,
    LedgerCorrupt,
    NothingToRollBack,
    OutcomeDecided,
    ReleasePending,
)
from model_registry.owner import Owner
from model_registry.store import Store


def digest(version: int) -> str:
    return f"{version:064x}"


def seq(ledger: Ledger, model: str = "m") -> int:
    champion = ledger.champion(model)
    return champion.seq if champion else 0


def release(ledger: Ledger, version: int, model: str = "m") -> Entry:
    return ledger.commit(ledger.begin(model, version, digest(version), expected_champion_seq=seq(ledger, model)))


def roll_back(ledger: Ledger, model: str = "m") -> Entry:
    to = ledger.rollback_target(model)
    entry = ledger.begin(model, to.to_version, to.digest, kind="rollback", expected_champion_seq=seq(ledger, model))
    return ledger.commit(entry)


def test_a_release_from_intent_to_champion(store: Store) -> None:
    ledger = Ledger(store)
    assert (ledger.champion("m"), ledger.pending("m"), ledger.history("m"), ledger.models()) == (None, None, [], [])
    entry = ledger.begin("m", 1, digest(1), expected_champion_seq=0)
    assert (entry.seq, entry.state, entry.from_version, entry.by) == (1, "pending", None, Owner.current())
    assert ledger.champion("m") is None
    assert Ledger(store).pending("m") == entry
    done = ledger.commit(entry)
    assert done.state == "committed" and done.decided_at is not None
    assert Ledger(store).champion("m") == done
    second = release(ledger, 2)
    assert (second.seq, second.from_version, second.from_digest) == (2, 1, digest(1))
    assert [e.to_version for e in Ledger(store).history("m")] == [1, 2]
    release(ledger, 5, "other.model")
    assert ledger.models() == ["m", "other.model"]


def test_an_aborted_release_leaves_the_champion(store: Store) -> None:
    ledger = Ledger(store)
    release(ledger, 1)
    failed = ledger.abort(ledger.begin("m", 2, digest(2), expected_champion_seq=1), "endpoint unhealthy")
    assert (failed.state, failed.reason) == ("aborted", "endpoint unhealthy")
    champion = ledger.champion("m")
    assert champion is not None and champion.to_version == 1
    third = release(ledger, 3)
    assert (third.seq, third.from_version) == (3, 1)


def test_an_outcome_is_decided_once(store: Store) -> None:
    ledger = Ledger(store)
    entry = ledger.begin("m", 1, digest(1), expected_champion_seq=0)
    ledger.abort(entry, "its process died")
    again = ledger.abort(entry, "another reason")
    assert again.reason == "its process died"
    with pytest.raises(OutcomeDecided, match=r"already aborted \(its process died\); it cannot become committed"):
        Ledger(store).commit(entry)


def test_one_at_a_time_and_against_the_champion_it_was_judged_by(store: Store) -> None:
    ledger = Ledger(store)
    first = ledger.begin("m", 1, digest(1), expected_champion_seq=0)
    with pytest.raises(ReleasePending, match="release 1 to version 1 is still under way") as caught:
        ledger.begin("m", 2, digest(2), expected_champion_seq=0)
    assert caught.value.entry == first
    ledger.commit(first)
    with pytest.raises(ChampionMoved, match=r"decided against champion entry 0, but it is entry 1 now \(version 1\)"):
        ledger.begin("m", 2, digest(2), expected_champion_seq=0)


def test_of_many_that_begin_at_once_one_wins(store: Store) -> None:
    for round_ in range(1, 4):
        won: list[Entry] = []
        lost: list[Entry] = []

        def begin(version: int, won: list[Entry] = won, lost: list[Entry] = lost, expected: int = round_ - 1) -> None:
            try:
                won.append(
                    Ledger(Store(store.uri)).begin("m", version, digest(version), expected_champion_seq=expected)
                )
            except ReleasePending as pending:
                lost.append(pending.entry)

        threads = [threading.Thread(target=begin, args=(version,)) for version in range(1, 7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert (len(won), len(lost)) == (1, 5)
        assert all(entry == won[0] for entry in lost)
        Ledger(store).commit(won[0])


def test_rollback_goes_one_further_back_each_time(store: Store) -> None:
    ledger = Ledger(store)
    with pytest.raises(NothingToRollBack, match="it has no champion"):
        ledger.rollback_target("m")
    for version in (1, 2, 3):
        release(ledger, version)
    assert [roll_back(ledger).to_version, roll_back(ledger).to_version] == [2, 1]
    with pytest.raises(NothingToRollBack, match="version 1 is its first champion"):
        ledger.rollback_target("m")
    release(ledger, 4)
    assert roll_back(ledger).to_version == 1


def test_a_version_that_was_champion_twice_is_left_twice(store: Store) -> None:
    ledger = Ledger(store)
    for version in (1, 2, 1, 3):
        release(ledger, version)
    assert [roll_back(ledger).to_version for _ in range(3)] == [1, 2, 1]
    with pytest.raises(NothingToRollBack):
        ledger.rollback_target("m")


def test_our_own_intent_whose_answer_was_lost_counts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Store.create_record

    def answer_lost(self: Store, key: str, data: bytes) -> bool:
        original(self, key, data)
        return False

    monkeypatch.setattr(Store, "create_record", answer_lost)
    ledger = Ledger(store)
    assert ledger.commit(ledger.begin("m", 1, digest(1), expected_champion_seq=0)).state == "committed"


@pytest.mark.parametrize(
    ("key", "data"),
    [
        ("00000002.json", b'{"model": "m", "se'),
        ("00000002.json", b""),
        ("00000002.json", b'{"schema": 2}'),
        ("00000001.outcome.json", b"null"),
        ("00000003.json", None),  # a hole: entry 2 is missing
        ("00000002.outcome.json", None),  # an outcome without its intent
    ],
)
def test_what_cannot_be_read_is_an_error_that_names_it(store: Store, key: str, data: bytes | None) -> None:
    release(Ledger(store), 1)
    whole = store.read_record("ledger/m/00000001.json")
    assert whole is not None
    store.write_record(f"ledger/m/{key}", whole if data is None else data)
    ledger = Ledger(store)
    with pytest.raises(LedgerCorrupt, match=r"restore|remove|update this installation"):
        ledger.history("m")
    with pytest.raises(LedgerCorrupt):
        ledger.begin("m", 2, digest(2), expected_champion_seq=1)


def test_what_is_no_entry_harms_no_model(store: Store) -> None:
    release(Ledger(store), 1)
    for stray in ("README.txt", "m/notes.txt", "m/00000002.json.bak", "other/deep/00000001.json", "m/2.json"):
        store.write_record(f"ledger/{stray}", b"hello")
    ledger = Ledger(store)
    assert ledger.models() == ["m"]
    assert [entry.to_version for entry in ledger.history("m")] == [1]
    assert release(ledger, 2).seq == 2


def test_an_entry_under_the_wrong_number_is_an_error(store: Store) -> None:
    release(Ledger(store), 1)
    whole = store.read_record("ledger/m/00000001.json")
    assert whole is not None
    store.write_record("ledger/m/00000002.json", whole)
    with pytest.raises(LedgerCorrupt, match="says it is entry 1 of 'm'"):
        Ledger(store).pending("m")


def test_entries_written_by_the_first_version_still_load(store: Store) -> None:
    owner = {"host": "h", "space": "s", "pid": 7, "started": 9}
    common = {"schema": 1, "model": "m", "seq": 1, "by": owner}
    intent = {
        **common,
        "kind": "release",
        "from_version": None,
        "from_digest": None,
        "to_version": 4,
        "digest": digest(4),
        "at": "2026-11-22T12:00:00Z",
        "token": "0011223344556677",
    }
    outcome = {**common, "state": "committed", "reason": "", "at": "2026-11-22T12:00:05Z"}
    store.write_record("ledger/m/00000001.json", json.dumps(intent).encode())
    store.write_record("ledger/m/00000001.outcome.json", json.dumps(outcome).encode())
    champion = Ledger(store).champion("m")
    assert champion is not None and champion.to_version == 4 and champion.by.pid == 7


@pytest.mark.parametrize("model", ["", "../m", "a/b", "x" * 65])
def test_model_names_are_checked(store: Store, model: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        Ledger(store).begin(model, 1, digest(1), expected_champion_seq=0)


def test_reading_a_long_ledger_is_quick(store: Store) -> None:
    ledger = Ledger(store)
    for version in range(1, 31):
        release(ledger, version)
    asked: list[str] = []
    store.client.meta.events.register("before-call.s3", lambda model, **_: asked.append(model.name))
    champion = Ledger(store).champion("m")
    assert champion is not None and champion.to_version == 30
    assert asked == ["ListObjectsV2", "GetObject", "GetObject"]  # the last entry and its outcome, not all of them


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("release"), st.integers(1, 5)),
        st.tuples(st.just("aborted"), st.integers(1, 5)),
        st.tuples(st.just("rollback"), st.just(0)),
    ),
    max_size=25,
)


@given(ACTIONS)
@settings(max_examples=150, deadline=None)
def test_any_history_keeps_the_rules(actions: list[tuple[str, int]]) -> None:
    memory = Memory()
    stack: list[int] = []  # the model: who was champion, as a person would keep it on paper
    for action, version in actions:
        ledger = Ledger(memory)  # nothing may depend on what one instance remembers
        if action == "release":
            release(ledger, version)
            if stack[-1:] != [version]:
                stack.append(version)
        elif action == "aborted":
            ledger.abort(ledger.begin("m", version, digest(version), expected_champion_seq=seq(ledger)), "test")
        elif len(stack) > 1:
            roll_back(ledger)
            stack.pop()
        else:
            with pytest.raises(NothingToRollBack):
                ledger.rollback_target("m")
        champion = Ledger(memory).champion("m")
        assert (champion.to_version if champion else None) == (stack[-1] if stack else None)
        assert Ledger(memory).pending("m") is None
    history = Ledger(memory).history("m")
    assert [e.seq for e in history] == list(range(1, len(history) + 1))
    assert all(e.state != "pending" for e in history)
    committed = [e for e in history if e.state == "committed"]
    # Each intent names the champion it replaces: the ledger is a chain.
    was: list[Any] = [None, *(e.to_version for e in committed)]
    assert [e.from_version for e in committed] == was[: len(committed)]
