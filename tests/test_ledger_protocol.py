"""Releases on real servers: killed between any two steps, failing, contended, rolled back, moved by hand."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from conftest import Server
from endpoint_process import TOKEN
from endpoint_process import Endpoint as Process
from endpoint_process import endpoint as endpoint_process
from mlflow import MlflowClient
from patience import wait_for
from release_world import INPUTS, World, new_name

from flows.commands.stack_releases import settle_releases
from flows.release import rollback
from model_registry import lease as lease_module
from model_registry.cpu_class import cpu_class
from model_registry.endpoint_client import Endpoint, EndpointRefused, EndpointUnreachable, HeldVersion, ServedModel
from model_registry.ledger import ChampionMoved, Ledger, LedgerCorrupt, NothingToRollBack, ReleasePending
from model_registry.owner import Owner
from model_registry.registry import Registry
from model_registry.store import Store, StoreUnavailable
from model_registry.variant import RuntimeSpec
from model_registry.versions import VersionMissing, Versions
from tasks.release import ledger_protocol
from tasks.release.ledger_protocol import ReleaseProtocol
from tasks.running.errors import EndpointUnhealthy

DRIVER = str(Path(__file__).with_name("release_driver.py"))
STEPS = ("intent", "loaded", "checked", "swapped", "committed", "shown")


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
    went_through = step in ("swapped", "committed", "shown")
    assert world.answers() == (2.0 if went_through else 1.0)
    # Until somebody reconciles, the ledger says what is true: half a release is pending, or it is done.
    assert (world.ledger.pending(world.model) is None) == (step in ("committed", "shown"))

    found = world.rollout().reconcile()

    expected = 2 if went_through else 1
    later = {"committed": "shown", "shown": "nothing"}  # the alias had not followed yet, or had
    assert found.action == later.get(step, "committed" if went_through else "aborted")
    assert world.state() == (expected, float(expected), expected, [expected])
    assert world.ledger.pending(world.model) is None
    if found.action == "aborted":
        assert found.entry is not None and "ended or lost its lease" in found.entry.reason


@pytest.mark.parametrize("step", ["checked", "swapped"])
def test_the_very_first_release_killed(world: World, die_at: DieAt, step: str) -> None:
    die_at(world, 1, step)
    world.rollout().reconcile()
    assert world.state() == ((1, 1.0, 1, [1]) if step == "swapped" else (None, None, None, []))


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


@pytest.mark.parametrize("step", ["checked", "swapped"])
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


def test_without_mlflow_everything_is_released_and_shown_later(world: World) -> None:
    world.release(1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes requests and never answers
        hung = Registry(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.5)
        protocol = ReleaseProtocol(world.store, world.endpoint, hung, world.model)
        started = time.monotonic()
        assert protocol.release(2, world.digest(2)).state == "committed"
        assert time.monotonic() - started < 10
    (warning,) = protocol.warnings
    assert "MLflow does not show version 2 as champion" in warning and "`winnow up`" in warning
    assert world.state() == (2, 2.0, 1, [2])
    assert str(world.rollout().reconcile()) == "MLflow's alias champion was moved to the champion"
    assert world.state() == (2, 2.0, 2, [2])
    nowhere = ReleaseProtocol(world.store, world.endpoint, None, world.model)
    assert nowhere.release(3, world.digest(3)).state == "committed" and nowhere.warnings == []


def test_mlflow_lost_a_rollback_moves_the_alias_to_the_digest_and_not_to_the_number(world: World) -> None:
    world.release(1)
    world.release(2)
    before = {number: world.digest(number) for number in (1, 2, 3)}
    client = MlflowClient(world.registry.uri)
    client.delete_registered_model(world.model)
    client.create_registered_model(world.model)  # and somebody registers something else, which becomes version 1
    client.create_model_version(world.model, "s3://nowhere/x", tags={"winnow.digest": "e" * 64}, await_creation_for=0)
    back = world.ledger.rollback_target(world.model)
    assert world.rollout().release(back.to_version, back.digest, kind="rollback").to_version == 1
    assert (world.champion(), world.answers(), world.loaded()) == (1, 1.0, [1])
    row = world.registry.alias(world.model, "champion")
    (shown,) = [one for one in world.registry.versions(world.model) if one.version == row]
    assert (shown.digest, shown.number) == (before[1], 1)
    assert Versions(world.store).all(world.model) == before  # the store's numbers are the same as ever
    world.release(3)
    assert (world.champion(), world.answers()) == (3, 3.0)


def test_where_all_rows_are_lost_all_are_made_again_under_their_numbers(world: World) -> None:
    world.release(1)
    MlflowClient(world.registry.uri).delete_registered_model(world.model)
    world.release(2)
    assert world.state() == (2, 2.0, 2, [2])
    assert [(row.version, row.number, row.digest) for row in world.registry.versions(world.model)] == [
        (number, number, world.digest(number)) for number in (1, 2, 3)
    ]


@pytest.mark.parametrize("deleted", [1, 2], ids=["the one before", "the champion"])
def test_a_version_deleted_by_hand_is_rolled_back_to_and_from(world: World, deleted: int) -> None:
    world.release(1)
    world.release(2)
    MlflowClient(world.registry.uri).delete_model_version(world.model, str(deleted))
    world.register(4, recorded=4.2, row=deleted == 1)
    with pytest.raises(EndpointUnhealthy):
        world.release(4)  # what fails leaves the champion, whatever MLflow has of it
    assert (world.champion(), world.answers(), world.loaded()) == (2, 2.0, [2])
    back = world.ledger.rollback_target(world.model)
    world.rollout().release(back.to_version, back.digest, kind="rollback")
    assert (world.champion(), world.answers(), world.loaded()) == (1, 1.0, [1])
    assert world.shown_champion() == world.digest(1)


def test_a_pending_release_whose_row_vanished_blocks_nothing(world: World, die_at: DieAt) -> None:
    world.release(1)
    die_at(world, 2, "swapped")
    MlflowClient(world.registry.uri).delete_model_version(world.model, "2")
    world.release(3)
    assert [entry.state for entry in world.ledger.history(world.model)] == ["committed"] * 3
    assert world.state() == (3, 3.0, 3, [3])


def test_numbers_that_were_given_twice_are_told_apart_by_their_digests(world: World) -> None:
    """MLflow was lost before the store kept the numbers: the ledger has version 1 of two variants."""
    world.release(1)
    first, second = world.digest(1), world.digest(2)
    for key in world.store.list_records(f"versions/{world.model}/"):
        world.store.delete_record(key)
    entry = world.ledger.begin(world.model, 1, second, expected_champion_seq=1)
    world.ledger.commit(entry)
    assert world.rollout().reconcile().action == "rerouted"  # the number is right, and the variant is not
    assert (world.answers(), world.endpoint.model(world.model).digest_of(1)) == (2.0, second)
    back = rollback(world.model)
    assert (back.digest, world.answers()) == (first, 1.0) and back.version != 1
    with pytest.raises(NothingToRollBack):
        world.ledger.rollback_target(world.model)


def restarted(world: World, folder: Path, step: str) -> tuple[ReleaseProtocol, ExitStack]:
    """A release whose endpoint is started again at the step, and serves what the ledger says then."""
    ends = ExitStack()
    protocol = world.rollout()

    def note(reached: str) -> None:
        if reached == step:
            fresh = ends.enter_context(endpoint_process(folder))
            wait_for(lambda: fresh.get(f"/v2/models/{world.model}/ready").status_code == 200)
            world.endpoint = protocol.endpoint = Endpoint(fresh.url, fresh.admin_url, TOKEN)
            ends.callback(world.endpoint.close)

    protocol._note = note
    return protocol, ends


def test_an_endpoint_that_restarts_between_swap_and_commit_serves_what_the_ledger_says(
    world: World, tmp_path: Path
) -> None:
    world.release(1)
    protocol, ends = restarted(world, tmp_path / "fresh", "swapped")
    with ends:
        assert protocol.release(2, world.digest(2)).state == "committed"
        assert world.state() == (2, 2.0, 2, [2])
        assert (protocol.served, protocol.warnings) == (True, [])


def test_an_endpoint_that_strays_at_the_commit_is_brought_to_it(world: World) -> None:
    """As one does that was started before the commit, and had read the ledger by then."""
    world.release(1)
    protocol = world.rollout()

    def note(reached: str) -> None:
        if reached == "committed":
            world.endpoint.route(world.model, 1)

    protocol._note = note
    protocol.release(2, world.digest(2))
    assert world.state() == (2, 2.0, 2, [2])


def test_an_endpoint_that_is_lost_after_the_commit_is_reported(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.release(1)
    monkeypatch.setattr(ledger_protocol, "PATIENCE_SECONDS", 0.1)
    protocol = world.rollout()

    def note(reached: str) -> None:
        if reached == "committed":
            protocol.endpoint = Endpoint("http://127.0.0.1:9", "http://127.0.0.1:9", TOKEN)

    protocol._note = note
    assert protocol.release(2, world.digest(2)).state == "committed"
    (warning,) = protocol.warnings
    assert (
        not protocol.served and "version 2 is the champion by the ledger, but the endpoint does not serve it" in warning
    )


def test_an_endpoint_that_is_lost_before_the_commit_ends_the_release(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.release(1)
    monkeypatch.setattr(ledger_protocol, "PATIENCE_SECONDS", 0.1)
    protocol = world.rollout()

    def note(reached: str) -> None:
        if reached == "swapped":
            protocol.endpoint = Endpoint("http://127.0.0.1:9", "http://127.0.0.1:9", TOKEN)

    protocol._note = note
    with pytest.raises(EndpointUnhealthy, match="was not put into service"):
        protocol.release(2, world.digest(2))
    assert world.champion() == 1 and world.ledger.pending(world.model) is None
    assert world.rollout().reconcile().action == "rerouted"
    assert world.state() == (1, 1.0, 1, [1])


def test_up_has_endpoint_and_mlflow_say_what_the_ledger_says(world: World) -> None:
    def said() -> list[str]:
        lines = settle_releases(world.store, patience=0.0)
        return [line.partition(": ")[2] for line in lines if line.startswith(world.model)]

    world.release(1)
    assert said() == []
    world.endpoint.load(world.model, 3, world.digest(3))
    world.endpoint.route(world.model, 3)
    assert said() == ["its traffic was given back to the champion"]
    world.registry.set_alias(world.model, "champion", 3)
    assert said() == ["MLflow's alias champion was moved to the champion"]
    world.endpoint.route(world.model, None)
    assert said() == ["its traffic was given back to the champion"]
    assert said() == [] and world.state() == (1, 1.0, 1, [1])


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


def test_an_alias_moved_by_hand_changes_nothing_and_is_moved_back(world: World) -> None:
    world.release(1)
    world.registry.set_alias(world.model, "champion", 3)
    assert world.answers() == 1.0  # `winnow status` shows it
    assert world.rollout().reconcile().action == "shown"
    assert world.state() == (1, 1.0, 1, [1])


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
    with pytest.raises(VersionMissing, match=rf"version 3 of model '{world.model}' is variant {world.digest(3)}, not"):
        world.rollout().release(3, world.digest(2))
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
