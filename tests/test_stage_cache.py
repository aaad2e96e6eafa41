"""A stage is computed when something that matters changed, and only then; failures and outages are never stored."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from model_registry.lease import Held, LeaseLost, LeaseRecord, lease
from model_registry.manifest import FileEntry
from model_registry.owner import Owner
from model_registry.store import Store, StoreDenied, StoreUnavailable
from model_registry.variant import Variant
from tasks.running.errors import ChildFailed
from tasks.running.journal import Journal, journal
from tasks.running.splits import DataRef, MetricRef
from tasks.running.stage import Job, Limits, Outcome, Stage, WorkloadRef
from tasks.running.stage_cache import run_stage
from tasks.running.stage_call import StageCall
from tasks.running.stage_plan import Plan, planning

HERE = str(Path(__file__).parent)


class EchoSpec(BaseModel):
    """What the test stage takes."""

    count: str
    content: str = "hello"
    sleep: float = 0.0


def job(store: Store, **changes: Any) -> Job:
    values: dict[str, Any] = {
        "run_id": "run-1",
        "model": "m",
        "store": store.uri,
        "workload": WorkloadRef(path="child_entries:Nothing", arguments={"a": 1}, folder=HERE),
        "seed": 3,
        "device": "cpu",
    }
    return Job(**{**values, **changes})


STAGE = Stage(name="echo", entry="child_entries:echo", libraries=("numpy",), yields=("v",))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))


def computed(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def some_variant(name: str, content: str) -> Variant:
    files = (FileEntry(path="f", sha256=content * 64, size=1),)
    return Variant(name=name, stage="train", format="torch", files=files, inputs=(), outputs=())


def some_data(content: str) -> DataRef:
    metric = MetricRef(name="accuracy", better="higher", builtin=True)
    return DataRef(fingerprint=content * 64, splits=(), columns={}, task="classes", metric=metric)


def test_the_second_call_reuses_and_says_from_where(store: Store, tmp_path: Path) -> None:
    spec = EchoSpec(count=str(tmp_path / "count"))
    first = run_stage(STAGE, job(store), spec)
    second = run_stage(STAGE, job(store, run_id="run-2"), spec)
    assert (first.status, second.status) == ("computed", "reused")
    assert first.reason == "first time"
    assert second.reason == "made by run run-1"
    assert second.files == first.files
    assert second.values == first.values
    labelled = run_stage(STAGE, job(store), spec, label="again")
    assert (labelled.name, labelled.status, labelled.key) == ("echo:again", "reused", first.key)
    assert computed(tmp_path / "count") == 1


def test_a_run_looks_a_stage_up_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, notes = EchoSpec(count=str(tmp_path / "count")), Journal()
    token = journal.set(notes)
    try:
        first = run_stage(STAGE, job(store), spec)
        with monkeypatch.context() as blind:
            blind.setattr(Store, "read_record", lambda *_: pytest.fail("it was found before"))
            again = run_stage(STAGE, job(store), spec, label="again")
        assert (again.name, again.status, again.reason) == ("echo:again", "reused", "made by run run-1")
        assert (again.key, again.files, again.values) == (first.key, first.files, first.values)
        assert (again.compute_seconds, again.cost_seconds) == (0.0, first.cost_seconds)
        notes.found.clear()  # as a run does that met a broken file
        store.client.delete_object(Bucket=store.bucket, Key=store.blob_key(first.files[0].sha256))
        assert run_stage(STAGE, job(store), spec).status == "computed"
    finally:
        journal.reset(token)


def test_each_ingredient_alone_changes_the_key(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(**changes: Any) -> str:
        given: dict[str, Any] = {
            "stage": STAGE,
            "job": job(store),
            "spec": EchoSpec(count="c"),
            "data": some_data("a"),
            "inputs": {"parent": some_variant("p", "a")},
            "extra": {"x": 1},
        }
        return StageCall(**{**given, **changes}).key

    keys = {
        "same": key(),
        "seed": key(job=job(store, seed=4)),
        "device": key(job=job(store, device="cuda")),
        "spec": key(spec=EchoSpec(count="c", content="other")),
        "data": key(data=some_data("b")),
        "input": key(inputs={"parent": some_variant("p", "b")}),
        "role": key(inputs={"teacher": some_variant("p", "a")}),
        "extra": key(extra={"x": 2}),
        "arguments": key(job=job(store, workload=WorkloadRef(path="child_entries:Nothing", arguments={"a": 2}))),
        "library": key(stage=Stage(name="echo", entry=STAGE.entry, libraries=("pydantic",))),
        "code": key(stage=Stage(name="echo", entry="test_launch:run", libraries=STAGE.libraries)),
    }
    assert len(set(keys.values())) == len(keys)
    # What must not matter: the run, labels of calls and variants, limits, where the user's folder lies.
    assert key(label="another") == keys["same"]
    assert key(job=job(store, run_id="other", limits={"echo": Limits(seconds=5)})) == keys["same"]
    assert key(inputs={"parent": some_variant("renamed", "a")}) == keys["same"]

    monkeypatch.setattr("tasks.running.stage_call.cpu_class", lambda: "another")
    assert key() == keys["same"]
    on_class = Stage(name="echo", entry=STAGE.entry, libraries=STAGE.libraries, cpu_class_matters=True)
    assert key(stage=on_class) != (before := keys["same"])
    # What a class means is decided outside the sources that are hashed.
    monkeypatch.setattr("tasks.running.stage_call.sums_saturate", lambda name: True)
    saturating = key(stage=on_class)
    monkeypatch.setattr("tasks.running.stage_call.sums_saturate", lambda name: False)
    assert key(stage=on_class) != saturating
    assert key() == before


def test_user_code_counts_reformatting_does_not(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "user"
    folder.mkdir()
    reference = WorkloadRef(path="mine_workload:Mine", folder=str(folder))

    def source(code: str) -> Any:
        (folder / "mine_workload.py").write_text(code)
        return StageCall(STAGE, job(store, workload=reference), EchoSpec(count="c")).ingredients["workload"]

    before = source("class Mine:\n    x = 1\n")
    assert source("# a comment\nclass Mine:\n\n    x = (1)\n") == before
    assert source("class Mine:\n    x = 200\n") != before


def test_a_failure_is_not_stored(store: Store, tmp_path: Path) -> None:
    broken = Stage(name="echo", entry="child_entries:explode")
    for _ in range(2):
        with pytest.raises(ChildFailed, match="a surprise"):
            run_stage(broken, job(store), EchoSpec(count="c"))
    assert store.list_records("stages/") == []


def test_an_outage_or_wrong_keys_are_errors_not_misses(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = EchoSpec(count=str(tmp_path / "count"))
    run_stage(STAGE, job(store), spec)
    endpoint = store.client.meta.endpoint_url
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(StoreUnavailable, match="does not answer"):
        run_stage(STAGE, job(store), spec)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreDenied, match="AWS_SECRET_ACCESS_KEY"):
        run_stage(STAGE, job(store), spec)
    assert computed(tmp_path / "count") == 1


@pytest.mark.parametrize("damage", ["deleted", "overwritten", "truncated"])
def test_a_damaged_result_is_computed_again(store: Store, tmp_path: Path, damage: str) -> None:
    spec = EchoSpec(count=str(tmp_path / "count"))
    first = run_stage(STAGE, job(store), spec)
    key = store.blob_key(first.files[0].sha256)
    if damage == "deleted":
        store.delete(key)
    else:
        store.put(key, b"jello" if damage == "overwritten" else b"he")
    again = run_stage(STAGE, job(store, run_id="run-2"), spec)
    assert again.status == "computed"
    assert again.reason == "missing or corrupt in the store: answer.txt"
    assert store.fetch_bytes(again.files[0]) == b"hello"
    assert computed(tmp_path / "count") == 2
    assert run_stage(STAGE, job(store), spec).status == "reused"
    if damage == "overwritten":
        assert len(store.list_objects("quarantine/")) == 1


def test_a_damaged_record_is_computed_again(store: Store, tmp_path: Path) -> None:
    spec = EchoSpec(count=str(tmp_path / "count"))
    first = run_stage(STAGE, job(store), spec)
    store.write_record(f"stages/{first.key}.json", b'{"schema": 1, "key"')
    store.put("latest/m/echo.json", b"{")
    again = run_stage(STAGE, job(store), spec)
    assert again.status == "computed"
    assert "cannot be read" in again.reason
    assert run_stage(STAGE, job(store), spec).status == "reused"


def test_the_same_work_at_the_same_time_is_done_once(store: Store, tmp_path: Path) -> None:
    spec = EchoSpec(count=str(tmp_path / "count"), sleep=1.5)
    slow = Stage(name="slow", entry="child_entries:slow")
    outcomes: list[Outcome] = []
    threads = [
        threading.Thread(target=lambda i=i: outcomes.append(run_stage(slow, job(store, run_id=f"run-{i}"), spec)))
        for i in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(o.status for o in outcomes) == ["computed", "reused"]
    assert computed(tmp_path / "count") == 1


def test_who_lost_the_lease_while_computing_stores_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = Owner(host="other", space="other boot/other namespace", pid=1, started=1)

    def taken_over(store: Store, key: str, **given: Any) -> Any:
        """The lease, taken over in the middle of the work by a machine that thought us dead."""

        @contextmanager
        def held() -> Iterator[Held]:
            with lease(store, key, renewal=0.05, **given) as ours:
                thief = LeaseRecord(key=key, generation=99, holder=elsewhere, token="another")
                store.put(f"leases/{key}.json", thief.to_json())
                yield ours

        return held()

    monkeypatch.setattr("tasks.running.stage_cache.lease", taken_over)
    spec = EchoSpec(count=str(tmp_path / "count"), sleep=0.5)
    with pytest.raises(LeaseLost, match="taken over by process 1 on other"):
        run_stage(Stage(name="slow", entry="child_entries:slow"), job(store), spec)
    assert computed(tmp_path / "count") == 1
    assert store.list_records("stages/") == [] and store.list_objects("latest/") == []


def test_a_plan_computes_nothing_and_says_why(store: Store, tmp_path: Path) -> None:
    spec = EchoSpec(count=str(tmp_path / "count"))

    def plan(spec: EchoSpec, **changes: Any) -> list[tuple[str, str, str]]:
        token = planning.set(Plan())
        try:
            made = run_stage(STAGE, job(store, **changes), spec)
            run_stage(STAGE, job(store), spec, inputs={"parent": made.variant} if made.variants else {}, label="next")
            lines = planning.get()
            assert lines is not None
            return [(line.name, line.action, line.reason) for line in lines.lines]
        finally:
            planning.reset(token)

    assert plan(spec)[0] == ("echo", "computed", "first time")
    assert plan(spec)[1] == ("echo:next", "computed", "its parent will be new")
    assert computed(tmp_path / "count") == 0
    run_stage(STAGE, job(store), spec)
    assert plan(spec)[0] == ("echo", "reused", "made by run run-1")
    changed = plan(spec.model_copy(update={"content": "bye"}), seed=9)[0]
    assert changed == ("echo", "computed", "changed: seed 3 -> 9, spec.content hello -> bye")


def test_what_looks_is_computed_for_a_plan_too(store: Store, tmp_path: Path) -> None:
    looking = replace(STAGE, looks=True)
    spec = EchoSpec(count=str(tmp_path / "count"))
    token = planning.set(plan := Plan())
    try:
        first, again = (run_stage(looking, job(store), spec) for _ in range(2))
    finally:
        planning.reset(token)
    assert [(line.name, line.action) for line in plan.lines] == [("echo", "looked")]  # once, though asked for twice
    assert computed(tmp_path / "count") == 1
    assert first.variants == again.variants and first.values == again.values


def test_what_is_learned_is_part_of_the_key_once_it_is_settled(store: Store, tmp_path: Path) -> None:
    spec, before = EchoSpec(count=str(tmp_path / "count")), job(store)
    keys = [StageCall(STAGE, one, spec).key for one in (before, before.learning("binary"), before.learning("classes"))]
    assert len(set(keys)) == 3
    assert "task" not in StageCall(STAGE, before, spec).ingredients["workload"]
