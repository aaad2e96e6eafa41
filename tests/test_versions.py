"""Registered versions: a number names one digest for ever, whatever MLflow forgets."""

from __future__ import annotations

import pytest
from memory_store import Memory

from model_registry.ledger import Ledger
from model_registry.registry import ModelVersion
from model_registry.versions import VersionMissing, Versions

A, B, C, D = (letter * 64 for letter in "abcd")


def released(store: Memory, version: int, digest: str, *, after: int) -> None:
    ledger = Ledger(store)
    ledger.commit(ledger.begin("m", version, digest, expected_champion_seq=after))


def test_numbers_are_given_once() -> None:
    versions = Versions(Memory())
    assert [versions.add("m", digest) for digest in (A, B)] == [1, 2]
    assert versions.all("m") == {1: A, 2: B} and versions.all("other") == {}
    assert (versions.find("m", B), versions.find("m", C)) == (2, None)
    assert versions.add("m", C, above=6) == 7  # MLflow has six by hand
    assert versions.digest("m", 7) == C
    with pytest.raises(VersionMissing, match="model 'm' has no version 3; it has: 1, 2, 7"):
        versions.digest("m", 3)
    with pytest.raises(VersionMissing, match="it has: none; run the pipeline first"):
        versions.digest("other", 1)


def test_the_ledger_knows_what_was_released_before_the_numbers_were_kept() -> None:
    store = Memory()
    released(store, 1, A, after=0)
    released(store, 4, B, after=1)
    versions = Versions(store)
    assert versions.all("m") == {1: A, 4: B} and versions.digest("m", 4) == B
    assert versions.add("m", C) == 5


def test_of_a_number_given_twice_the_later_variant_has_it() -> None:
    store = Memory()
    released(store, 1, A, after=0)
    released(store, 1, B, after=1)  # MLflow had been lost, and began to count again
    versions = Versions(store)
    assert versions.find("m", A) is None and versions.find("m", B) == 1
    assert versions.add("m", A) == 2


def test_what_only_mlflow_knows_is_adopted() -> None:
    def row(version: int, digest: str, number: int | None = None) -> ModelVersion:
        return ModelVersion(model="m", version=version, digest=digest, run_id="r", number=number)

    versions = Versions(Memory())
    versions.add("m", A)
    versions.adopt("m", [row(1, B), row(2, ""), row(3, C), row(4, A), row(5, D, number=2)])
    # 1 is taken, 2 is nobody's of ours, A has a number, and 5 only shows another one.
    assert versions.all("m") == {1: A, 3: C}


def test_a_record_that_cannot_be_read_harms_only_itself() -> None:
    store = Memory()
    versions = Versions(store)
    for digest in (A, B):
        versions.add("m", digest)
    store.records["versions/m/00000002.json"] = b"torn"
    store.records["versions/m/stray"] = b"{}"
    assert versions.all("m") == {1: A}
    with pytest.raises(VersionMissing):
        versions.digest("m", 2)
    assert versions.add("m", C) == 3  # its number stays taken
