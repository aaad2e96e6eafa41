"""Releases on real servers: killed between any two steps, failing, contended, rolled back, moved by hand."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from conftest import Server
from endpoint_process import TOKEN
from endpoint_process import Endpoint as Process
from endpoint_process import endpoint as endpoint_process
from release_world import INPUTS, World, new_name

from model_registry import lease as lease_module
from model_registry.cpu_class import cpu_class
from model_registry.endpoint_client import Endpoint, EndpointRefused, EndpointUnreachable, HeldVersion, ServedModel
from model_registry.ledger import ChampionMoved, Ledger, LedgerCorrupt, ReleasePending
from model_registry.mlflow_rest import RegistryUnavailable
from model_registry.owner import Owner
from model_registry.registry import Registry, VersionMissing
from model_registry.store import Store, StoreUnavailable
from model_registry.variant import RuntimeSpec
from tasks.release import ledger_protocol
from tasks.running.errors import EndpointUnhealthy

DRIVER = str(Path(__file__).with_name("release_driver.py"))
STEPS = ("intent", "loaded", "checked", "swapped", "aliased", "committed")


@pytest.fixture(scope="module")
def process(s3: Server, mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One store and one endpoint for all tests here; each has a model of its own."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in s3.environment.items():
            environment.setenv(name, value)
        environment.setenv("WINNOW_STORE", "s3://ledger-protocol")
        environment.setenv("MLFLOW_TRACKING_URI", mlflow_server)
        Store.from_environment().prepare()
        with endpoint_process(tmp_path_factory.mktemp("endpoint")) as running:
            environment.setenv("WINNOW_ENDPOINT", running.url)
            environment.setenv("WINNOW_ENDPOINT_ADMIN", running.admin_url)
            environment.setenv("WINNOW_ADMIN_TOKEN", TOKEN)
            yield running


@pytest.fixture
def world(process: Process, tmp_path: Path) -> Iterator[World]:
    store = Store.from_environment()
    with Endpoint.from_environment() as endpoint:
        made = World(store, Registry.from_environment(), endpoint, new_name(), tmp_path)
        for number in (1, 2, 3):
            made.register(number)
        yield made


class DieAt(Protocol):
    """Releases in a process of its own that is killed when it reaches the step."""

    def __call__(self, world: World, number: int, step: str) -> None: ...


@pytest.fixture(scope="module")
def die_at(process: Process) -> Iterator[DieAt]:
    driver = subprocess.Popen([sys.executable, DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert driver.stdin is not None and driver.stdout is not None
    asked, answered = driver.stdin, driver.stdout

    def release(world: World, number: int, step: str) -> None:
        print(world.model, number, world.digest(number), step, file=asked, flush=True)
        assert answered.readline() == "-9\n"

    yield release
    asked.close()
    assert driver.wait(30) == 0
    answered.close()


def test_an_endpoint_that_was_restarted_meanwhile_undoes_the_swap(world: World, die_at: DieAt, tmp_path: Path) -> None:
    # First of all tests here: an endpoint that starts loads the champions of all the others' models too.
    world.release(1)
    die_at(world, 2, "swapped")
    with endpoint_process(tmp_path / "other") as fresh:  # loads the champion, as any endpoint that starts
        world.endpoint = Endpoint(fresh.url, fresh.admin_url, TOKEN)
        assert world.rollout().reconcile().action == "aborted"
        assert world.state() == (1, 1.0, 1, [1])
        world.endpoint.close()


def test_releases_and_rollbacks(world: World) -> None:
    rollout = world.rollout()
    first = rollout.release(1, world.digest(1))
    assert (first.seq, first.state, first.from_version) == (1, "committed", None)
    assert world.state() == (1, 1.0, 1, [1])
    world.release(2)
    world.release(3)
    assert world.state() == (3, 3.0, 3, [3])

    assert rollout.release(3, world.digest(3)).seq == 3  # already champion: no new entry
    assert len(world.ledger.history(world.model)) == 3

    for back in (2, 1):
        target = world.ledger.rollback_target(world.model)
        entry = rollout.release(target.to_version, target.digest, kind="rollback")
        assert (entry.kind, entry.to_version) == ("rollback", back)
        assert world.state() == (back, float(back), back, [back])


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_and_reconciled(world: World, die_at: DieAt, step: str) -> None:
    world.release(1)
    die_at(world, 2, step)
    went_through = step in ("swapped", "aliased", "committed")
    assert world.answers() == (2.0 if went_through else 1.0)
    # Until somebody reconciles, the ledger says what is true: half a release is pending, or it is done.
    assert (world.ledger.pending(world.model) is None) == (step == "committed")

    found = world.rollout().reconcile()

    expected = 2 if went_through else 1
    assert found.action == {"committed": "nothing"}.get(step, "committed" if went_through else "aborted")
    assert world.state() == (expected, float(expected), expected, [expected])
    assert world.ledger.pending(world.model) is None
    if found.action == "aborted":
        assert found.entry is not None and "ended or lost its lease" in found.entry.reason


@pytest.mark.parametrize("step", ["checked", "aliased"])
def test_the_very_first_release_killed(world: World, die_at: DieAt, step: str) -> None:
    die_at(world, 1, step)
    world.rollout().reconcile()
    assert world.state() == ((1, 1.0, 1, [1]) if step == "aliased" else (None, None, None, []))


def test_the_next_release_reconciles_by_itself(world: World, die_at: DieAt) -> None:
    world.release(1)
    die_at(world, 2, "swapped")
    world.release(3)
    assert [(e.to_version, e.state) for e in world.ledger.history(world.model)] == [
        (1, "committed"),
        (2, "committed"),
        (3, "committed"),
    ]
    assert world.state() == (3, 3.0, 3, [3])


def test_a_model_that_answers_differently_than_recorded_is_not_served(world: World) -> None:
    world.release(1)
    world.register(4, recorded=4.2)
    with pytest.raises(EndpointUnhealthy, match=r"answers 3 recorded inputs differently .* largest difference 0\.2"):
        world.release(4)
    assert world.state() == (1, 1.0, 1, [1])
    last = world.ledger.history(world.model)[-1]
    assert last.state == "aborted" and "EndpointUnhealthy" in last.reason


def test_a_model_that_cannot_be_loaded_is_not_served(world: World) -> None:
    world.release(1)
    variant = world.register(4, number=5.0)
    world.store.put(world.store.blob_key(variant.file("model.onnx").sha256), b"corrupt")
    with pytest.raises(EndpointUnhealthy, match=r"version 4 was not put into service: .*cannot be served"):
        world.release(4)
    assert world.state() == (1, 1.0, 1, [1])


def test_a_release_for_another_class_of_cpu_leaves_the_old_version_serving(world: World) -> None:
    world.release(1)
    before = world.state()
    world.register(4, runtime=RuntimeSpec(cpu_class="sparc/vis"))
    with pytest.raises(EndpointUnhealthy) as refused:
        world.release(4)
    text = str(refused.value)
    assert "version 4 was not put into service" in text and "run the pipeline on a machine of this class" in text
    assert f"for CPU class sparc/vis, this machine is {cpu_class()}" in text
    assert world.state() == before == (1, 1.0, 1, [1])


@pytest.mark.parametrize("step", ["checked", "aliased"])
def test_any_failure_leaves_everything_as_it_was(world: World, step: str) -> None:
    world.release(1)

    def note(reached: str) -> None:
        if reached == step:
            raise KeyboardInterrupt

    rollout = world.rollout()
    rollout._note = note
    with pytest.raises(KeyboardInterrupt):
        rollout.release(2, world.digest(2))
    assert world.state() == (1, 1.0, 1, [1])
    assert world.ledger.history(world.model)[-1].state == "aborted"


def test_mlflow_away_when_the_alias_is_due(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.release(1)
    monkeypatch.setattr(ledger_protocol, "PATIENCE_SECONDS", 2.0)
    failures = 1
    original = Registry.set_alias

    def away(self: Registry, *args: Any) -> None:
        nonlocal failures
        if failures > 0:
            failures -= 1
            raise RegistryUnavailable("MLflow is away")
        original(self, *args)

    monkeypatch.setattr(Registry, "set_alias", away)
    world.release(2)  # a short absence is waited out
    assert world.state() == (2, 2.0, 2, [2])
    failures = 1000
    with pytest.raises(RegistryUnavailable):
        world.release(3)
    assert world.state() == (2, 2.0, 2, [2])  # the swap was taken back


def test_the_store_away_when_it_should_be_committed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.release(1)
    monkeypatch.setattr(ledger_protocol, "PATIENCE_SECONDS", 1.0)

    def away(*_: Any) -> None:
        raise StoreUnavailable("S3 is away")

    with monkeypatch.context() as outage:
        outage.setattr(Ledger, "commit", away)
        outage.setattr(Ledger, "abort", away)
        with pytest.raises(StoreUnavailable):
            world.release(2)
    # Nothing could be decided; the endpoint serves the new one, so it is rolled forward.
    assert world.rollout().reconcile().action == "committed"
    assert world.state() == (2, 2.0, 2, [2])


def test_a_commit_whose_answer_was_lost_is_a_commit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.release(1)
    monkeypatch.setattr(ledger_protocol, "PATIENCE_SECONDS", 0.1)
    original = Ledger.commit

    def answer_lost(self: Ledger, entry: Any) -> Any:
        original(self, entry)
        raise StoreUnavailable("connection reset")

    monkeypatch.setattr(Ledger, "commit", answer_lost)
    assert world.rollout().release(2, world.digest(2)).state == "committed"
    assert world.state() == (2, 2.0, 2, [2])


def test_two_releases_at_once(world: World) -> None:
    world.release(1)
    errors: list[BaseException] = []

    def release(number: int) -> None:
        try:
            world.release(number)
        except Exception as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads = [threading.Thread(target=release, args=(number,)) for number in (2, 3, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert errors == []
    history = world.ledger.history(world.model)
    assert all(e.state == "committed" for e in history)
    last = history[-1].to_version
    assert world.state() == (last, float(last), last, [last])


def test_a_release_that_lost_its_lease_moves_nothing(world: World) -> None:
    world.release(1)
    thief = lease_module.LeaseRecord(
        key=f"release-{world.model}", generation=99, holder=Owner.current(), token="another"
    )

    def note(reached: str) -> None:
        if reached == "checked":  # somebody takes over while this process stands still
            world.store.put(f"leases/release-{world.model}.json", thief.to_json())
            time.sleep(lease_module.RENEWAL_SECONDS + 1)

    rollout = world.rollout()
    rollout._note = note
    with pytest.raises(lease_module.LeaseLost, match="was taken over by process"):
        rollout.release(2, world.digest(2))
    assert world.state() == (1, 1.0, 1, [1])
    world.store.delete(f"leases/release-{world.model}.json")


def test_decided_against_a_champion_that_is_gone(world: World) -> None:
    world.release(1)
    judged = world.ledger.champion(world.model)
    assert judged is not None
    world.release(2)
    with pytest.raises(ChampionMoved, match="decided against champion entry 1, but it is entry 2 now"):
        world.rollout().release(3, world.digest(3), champion_seq=judged.seq)
    assert world.state() == (2, 2.0, 2, [2])


def test_a_release_that_may_live_is_not_aborted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.release(1)
    # Another live process of this machine, which lost its lease (here: pytest's own parent) ...
    parent = Owner.current().model_copy(update={"pid": 1, "started": 0})
    monkeypatch.setattr(Owner, "provably_dead", lambda self: False)
    with monkeypatch.context() as other:
        other.setattr(Owner, "current", classmethod(lambda cls: parent))
        pending = world.ledger.begin(world.model, 2, world.digest(2), expected_champion_seq=1)
    with pytest.raises(ReleasePending, match="process 1 on"):
        world.rollout().reconcile()
    assert world.ledger.pending(world.model) == pending
    # ... is given up when it has taken far too long.
    late = datetime.now(UTC) - timedelta(seconds=ledger_protocol.LIMIT_SECONDS + 1)
    world.store.write_record(
        f"ledger/{world.model}/{pending.seq:08d}.json", _intent(pending.model_copy(update={"at": late}))
    )
    assert world.rollout().reconcile().action == "aborted"


def test_an_alias_moved_by_hand_is_not_followed(world: World) -> None:
    world.release(1)
    world.registry.set_alias(world.model, "champion", 3)
    assert world.rollout().reconcile().action == "nothing"
    assert world.registry.alias(world.model, "champion") == 3  # a person's doing: shown by status, not undone
    assert (world.champion(), world.answers()) == (1, 1.0)
    world.release(2)
    assert world.state() == (2, 2.0, 2, [2])  # until the next release


def test_the_right_number_with_other_files_is_not_rolled_forward(world: World) -> None:
    world.release(1)
    world.ledger.begin(world.model, 2, "f" * 64, expected_champion_seq=1)  # and its process died
    world.endpoint.load(world.model, 2, world.digest(2))
    world.endpoint.route(world.model, 2)
    assert world.rollout().reconcile().action == "aborted"
    assert world.state() == (1, 1.0, 1, [1])


def test_a_failed_release_leaves_an_alias_that_a_person_moved(world: World) -> None:
    world.release(1)
    world.registry.set_alias(world.model, "champion", 3)
    world.register(4, recorded=4.2)
    with pytest.raises(EndpointUnhealthy):
        world.release(4)
    assert world.state() == (1, 1.0, 3, [1])


def test_an_endpoint_that_strayed_is_brought_back(world: World) -> None:
    world.release(1)
    world.endpoint.load(world.model, 3, world.digest(3))
    world.endpoint.route(world.model, 3)
    assert world.answers() == 3.0
    assert world.rollout().reconcile().action == "rerouted"
    assert world.state() == (1, 1.0, 1, [1])


def test_a_champion_whose_engine_is_down_is_not_said_to_serve(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.release(1)
    held = HeldVersion(version=1, digest=world.digest(1), state="restarting")
    monkeypatch.setattr(world.endpoint, "model", lambda model: ServedModel(model=model, serving=1, versions=(held,)))

    def refuse(*_: object, **__: object) -> None:
        raise EndpointRefused("version 1 is restarting: its engine process died", 503)

    monkeypatch.setattr(world.endpoint, "load", refuse)
    monkeypatch.setattr(ledger_protocol, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(EndpointRefused, match="engine process died"):
        world.release(1)
    champion = world.ledger.champion(world.model)
    assert champion is not None and (champion.to_version, champion.seq) == (1, 1)


def test_what_cannot_be_released_moves_nothing(world: World) -> None:
    world.release(1)
    with pytest.raises(VersionMissing, match=r"has no version 9; it has: 1, 2, 3"):
        world.rollout().release(9, world.digest(2))
    world.store.write_record(f"ledger/{world.model}/00000002.json", b"torn")
    with pytest.raises(LedgerCorrupt):
        world.release(2)
    assert world.answers() == 1.0


def test_without_an_endpoint_nothing_is_decided(world: World, die_at: DieAt) -> None:
    world.release(1)
    die_at(world, 2, "swapped")
    world.endpoint = Endpoint("http://127.0.0.1:9", "http://127.0.0.1:9", TOKEN)
    with pytest.raises(EndpointUnreachable, match="winnow status"):
        world.rollout().reconcile()
    assert world.ledger.pending(world.model) is not None
    assert lease_module.read_lease(world.store, f"release-{world.model}").holder is None  # type: ignore[union-attr]


def test_no_request_is_dropped_while_versions_change(world: World) -> None:
    world.release(1)
    variant = world.store.load_variant(world.digest(1))
    stop, seen, failed = threading.Event(), set[float](), []

    def ask() -> None:
        mine = Endpoint.from_environment()
        while not stop.is_set():
            try:
                seen.add(float(mine.infer(world.model, None, INPUTS, variant.inputs)["y"][0, 0]))
            except Exception as error:  # noqa: BLE001 - shown below
                failed.append(error)
        mine.close()

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in (2, 3):
        world.release(number)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert failed == [] and seen == {1.0, 2.0, 3.0}


def _intent(entry: Any) -> bytes:
    from model_registry.ledger import Intent

    body = {name: getattr(entry, name) for name in Intent.model_fields}
    return Intent.model_validate(body).to_json()


def test_recorded_inputs_reach_the_endpoint_unchanged(world: World) -> None:
    world.endpoint.load(world.model, 1, world.digest(1))
    variant = world.store.load_variant(world.digest(1))
    answered = world.endpoint.infer(world.model, 1, {"x": np.zeros((2, 2), np.float32)}, variant.inputs)
    assert answered["y"].dtype == np.float32 and answered["y"].tolist() == [[1, 1], [1, 1]]
