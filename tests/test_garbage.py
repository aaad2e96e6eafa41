"""What may go from the store, and what never does."""

from __future__ import annotations

import time

import numpy as np
import pytest
from measurements import run_report

from model_registry.garbage import GarbageItem, find_garbage, remove_garbage
from model_registry.ledger import Ledger
from model_registry.manifest import canonical_json
from model_registry.recording import record, replay
from model_registry.store import ObjectMissing, Store
from model_registry.target_form import TargetForm, save_target
from model_registry.variant import TensorSpec, Variant
from model_registry.versions import Versions
from tasks.report.run_report import load_run, save_run

LATER = 40 * 86_400.0


def made(store: Store, name: str) -> Variant:
    """A variant as a run leaves it: its file, its manifest, the record of its stage, its recorded answers."""
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
    file = store.publish_bytes(name.encode() * 100, "model.onnx")
    variant = Variant(name=name, stage="export", format="onnx", files=(file,), inputs=(spec,), outputs=(spec,))
    store.save_variant(variant)
    body = {"variants": [variant.model_dump(mode="json", by_alias=True)]}
    store.write_record(f"stages/{name}.json", canonical_json(body))
    rows = np.zeros((4, 2), np.float32)
    record(store, variant, {"x": rows}, rows + len(name))
    return variant


def kinds(garbage: list[GarbageItem]) -> dict[str, int]:
    return {kind: sum(item.kind == kind for item in garbage) for kind in sorted({item.kind for item in garbage})}


def test_a_variant_for_a_gpu_stays_as_long_as_the_one_it_was_made_of(store: Store) -> None:
    registered, forgotten = (made(store, name) for name in ("registered", "rest"))
    on_gpu = [made(store, f"{variant.name}.cuda") for variant in (registered, forgotten)]
    for variant, form in zip((registered, forgotten), on_gpu, strict=True):
        found = TargetForm(target="cuda", digest=variant.digest, variant=form.digest, state="proven", reason="equal")
        save_target(store, found)
    ledger = Ledger(store)
    ledger.commit(ledger.begin("m", 1, registered.digest, expected_champion_seq=0))
    remove_garbage(store, find_garbage(store, days=30, now=time.time() + LATER))
    assert store.load_variant(on_gpu[0].digest) == on_gpu[0] and store.has_blob(on_gpu[0].file("model.onnx"))
    with pytest.raises(ObjectMissing):
        store.load_variant(on_gpu[1].digest)


def test_what_is_young_stays(store: Store) -> None:
    made(store, "fresh")
    store.put("checkpoints/a/1", b"x")
    assert find_garbage(store, days=30, now=time.time()) == []


def test_what_served_or_was_registered_stays_and_all_else_goes(store: Store) -> None:
    champion, registered, baseline, forgotten = (made(store, n) for n in ("champion", "second", "teacher", "rest"))
    ledger = Ledger(store)
    ledger.commit(ledger.begin("m", 1, champion.digest, expected_champion_seq=0))
    kept = run_report("registered", run_id="20261122-120455-m-aaaa", version=2)
    kept = kept.model_copy(update={"chosen": registered.digest, "baseline": baseline.digest, "champion": None})
    save_run(store, kept)
    save_run(store, kept)  # an older version of the record
    dropped = run_report("refused", run_id="20261122-130455-m-bbbb", version=None)
    save_run(store, dropped.model_copy(update={"chosen": forgotten.digest}))
    store.put("checkpoints/a/1", b"x")
    store.put("mlflow/1/artifact", b"not ours")
    blob = store.publish_bytes(b"nobody mentions this", "x")

    garbage = find_garbage(store, days=30, now=time.time() + LATER)
    assert kinds(garbage) == {
        "blobs": 3,  # the forgotten file, its recorded answers, the one that nobody mentions
        "older versions of records": 1,
        "results": 6,  # four stages, one manifest, one recording
        "scratch": 1,
    }
    remove_garbage(store, garbage)
    for variant in (champion, registered, baseline):
        assert store.load_variant(variant.digest) == variant
        assert store.fetch_bytes(variant.file("model.onnx")) == variant.name.encode() * 100
        replay(store, variant.digest)
    with pytest.raises(ObjectMissing):
        store.load_variant(forgotten.digest)
    assert not store.has_blob(blob) and store.get("mlflow/1/artifact") == b"not ours"
    entry = Ledger(store).champion("m")
    assert entry is not None and entry.digest == champion.digest
    assert load_run(store, dropped.run_id) is not None
    again = find_garbage(store, days=30, now=time.time() + LATER)
    assert kinds(again) == {"older versions of records": 12}  # what was deleted in a versioned bucket, and its markers
    remove_garbage(store, again)
    assert find_garbage(store, days=30, now=time.time() + LATER) == []


def test_what_a_number_names_stays_whatever_the_records_of_runs_say(store: Store) -> None:
    numbered, other = made(store, "numbered"), made(store, "other")
    assert Versions(store).add("m", numbered.digest) == 1
    remove_garbage(store, find_garbage(store, days=30, now=time.time() + LATER))
    assert Versions(store).all("m") == {1: numbered.digest}
    assert store.has_blob(numbered.file("model.onnx")) and not store.has_blob(other.file("model.onnx"))
    replay(store, numbered.digest)


def test_a_file_that_two_variants_share_stays_for_the_other(store: Store) -> None:
    champion, other = made(store, "shared"), made(store, "other")
    twin = champion.model_copy(update={"name": "twin"})
    store.write_record("stages/twin.json", canonical_json({"files": [twin.model_dump(mode="json", by_alias=True)]}))
    ledger = Ledger(store)
    ledger.commit(ledger.begin("m", 1, champion.digest, expected_champion_seq=0))
    remove_garbage(store, find_garbage(store, days=30, now=time.time() + LATER))
    assert store.has_blob(champion.file("model.onnx")) and not store.has_blob(other.file("model.onnx"))
