"""A run says what is true of its release, however it ends: interrupted, out of disk, killed."""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from time import sleep
from types import SimpleNamespace
from typing import Any

import pytest
from memory_store import Memory
from prefect import flow
from prefect.client.orchestration import get_client

from flows import carried_out, conclusion, dead_runs
from flows import compress as compress_module
from flows.carried_out import read_report, settings_of_a_run
from flows.commands import command_run, deployments, stack_doctor
from flows.conclusion import concluding
from flows.dead_runs import mark_dead_runs
from flows.ongoing_run import OngoingRun, make_job
from flows.spec import load_spec
from infra.faults import StackDown
from model_registry.ledger import Entry, Ledger
from model_registry.mlflow_rest import RegistryHung
from model_registry.owner import Owner
from model_registry.store import Store, StoreUnavailable
from tasks.report.run_report import RunReport, load_run, save_run
from tasks.running.stage_cache import log_folder

CHOSEN = "a" * 64
FULL = OSError(28, "No space left on device")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OngoingRun:
    """A run that has registered version 1 and is about to release it."""
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path))
    monkeypatch.setattr(conclusion, "_show_in_prefect", lambda *_: None)
    monkeypatch.setattr(conclusion, "chosen_layers", lambda *_: None)
    monkeypatch.setattr(conclusion, "flips_of", lambda *_: None)
    spec = load_spec("tiny", [])
    return OngoingRun(spec, make_job(spec, "r1"), Memory(), report(status="registered", version=1, chosen=CHOSEN))


def report(**fields: Any) -> RunReport:
    about = {"run_id": "r1", "status": "running", "model": "tiny", "started": datetime.now(UTC)}
    return RunReport.model_validate(about | {"owner": Owner.current()} | fields)


def begin(store: Store) -> Entry:
    return Ledger(store).begin("tiny", 1, CHOSEN, expected_champion_seq=0)


def end(run: OngoingRun, error: BaseException | None) -> None:
    made: Any = SimpleNamespace(
        data=SimpleNamespace(file=lambda _: None), steps=(), parents={}, checked=SimpleNamespace(labels=None)
    )
    with concluding(run, made, (), None):
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_interrupted_after_the_commit_it_has_released(run: OngoingRun, error: BaseException) -> None:
    Ledger(run.store).commit(begin(run.store))
    with pytest.raises(type(error)):  # somebody wants the prompt all the same
        end(run, error)
    assert (run.report.status, run.report.version, run.report.error) == ("released", 1, None)
    assert run.report.warnings[-1].startswith("version 1 was released, and then the run ended with")


@pytest.mark.parametrize("outcome", ["pending", "aborted", "none", "of another run"])
def test_interrupted_before_the_commit_it_has_not(run: OngoingRun, outcome: str) -> None:
    if outcome != "none":
        entry = begin(run.store)
        if outcome == "aborted":
            Ledger(run.store).abort(entry, "stopped")
        if outcome == "of another run":
            Ledger(run.store).commit(entry)
            run.update(started=datetime.now(UTC))  # in the same process, after it
    with pytest.raises(KeyboardInterrupt):
        end(run, KeyboardInterrupt())
    assert run.report.status == "interrupted" and run.report.error is not None


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        ("released", 0, "version 1 was released; interrupted before"),
        ("interrupted", 130, "Continue with: winnow run tiny"),
    ],
)
def test_the_command_says_whether_it_released_before_it_was_interrupted(
    run: OngoingRun,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    status: str,
    code: int,
    says: str,
) -> None:
    def interrupted(spec: Any, *, run_id: str, **_: Any) -> None:
        folder = log_folder(run_id)
        folder.mkdir(parents=True)
        (folder / "report.json").write_bytes(report(status=status, version=1).to_json())
        raise KeyboardInterrupt

    monkeypatch.setattr(compress_module, "compress", interrupted)
    monkeypatch.setattr(command_run, "_stop_on_signals", lambda *_: Event())
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(carried_out, "_wait_for_prefect", lambda _: None)
    monkeypatch.setenv("WINNOW_SPEC", "tiny")
    assert command_run._run(run.spec, None, False, Path("none")) == code
    assert says in capsys.readouterr().err


def test_out_of_disk_after_the_commit_it_has_released_and_ends_well(run: OngoingRun) -> None:
    Ledger(run.store).commit(begin(run.store))
    end(run, FULL)
    stored = load_run(run.store, "r1")
    assert stored is not None and (stored.status, stored.version, stored.error) == ("released", 1, None)
    assert "No space left on device" in stored.warnings[-1]


def test_out_of_disk_before_it_has_failed(run: OngoingRun) -> None:
    with pytest.raises(OSError, match="No space left"):
        end(run, FULL)
    assert run.report.status == "failed"


def test_pages_that_cannot_be_written_are_a_warning(run: OngoingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise FULL

    run.update(status="released")
    monkeypatch.setattr(conclusion, "write_report", full)
    end(run, None)
    stored = load_run(run.store, "r1")
    assert stored is not None and stored.status == "released"
    assert stored.warnings == ("not shown everywhere: OSError: [Errno 28] No space left on device",)


def test_mlflow_that_fails_is_a_warning_and_is_asked_no_more(run: OngoingRun) -> None:
    def hang() -> str:
        raise RegistryHung("not answered within 30 s")

    assert run.show(lambda: "shown") == "shown"
    assert run.show(hang) is None
    assert run.show(lambda: pytest.fail("it was asked again")) is None
    assert run.report.warnings == ("MLflow does not show this run: not answered within 30 s",)


def test_a_ledger_that_cannot_be_read_is_said_to_be(run: OngoingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> None:
        raise StoreUnavailable("S3 is away")

    monkeypatch.setattr(Ledger, "history", away)
    with pytest.raises(KeyboardInterrupt):
        end(run, KeyboardInterrupt())
    assert run.report.status == "interrupted"
    assert run.report.warnings == ("whether version 1 was released cannot be told: S3 is away",)


def test_without_room_beside_the_logs_the_record_is_in_the_store(
    run: OngoingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.update(status="running")
    run.save()
    beside = tmp_path / "runs" / "r1" / "report.json"
    assert json.loads(beside.read_text())["status"] == "running"

    def full(*_: Any) -> None:
        raise FULL

    run.update(status="released")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        run.save()
    assert not beside.exists()  # it would say what is not true any more
    monkeypatch.setattr(Store, "from_environment", lambda: run.store)
    found = read_report("r1")
    assert found is not None and found.status == "released"


@pytest.mark.parametrize(
    ("outcome", "status", "prefect"),
    [("committed", "released", "COMPLETED"), ("aborted", "crashed", "CRASHED"), ("none", "crashed", "CRASHED")],
)
def test_a_run_that_was_killed_is_marked_as_it_ended(
    monkeypatch: pytest.MonkeyPatch, outcome: str, status: str, prefect: str
) -> None:
    store, told = Memory(), list[str]()
    monkeypatch.setattr(dead_runs, "set_prefect_state", lambda _id, kind, _text: told.append(kind))
    save_run(store, report(prefect_run="p"))  # what a run still says that was killed before it could write more
    if outcome != "none":
        entry = begin(store)
        Ledger(store).commit(entry) if outcome == "committed" else Ledger(store).abort(entry, "x")
    monkeypatch.setattr(Owner, "provably_dead", lambda _: True)
    (marked,) = mark_dead_runs(store)
    assert (marked.status, told) == (status, [prefect])
    assert marked == load_run(store, "r1")
    assert (marked.version, len(marked.warnings)) == ((1, 1) if status == "released" else (None, 0))


def test_a_run_that_wrote_its_end_and_died_before_prefect_knew_ends_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    store, told = Memory(), list[tuple[str, str]]()
    for name, status in (("failed", "failed"), ("there", "released"), ("lives", "failed")):
        made = report(run_id=name, prefect_run=f"p-{name}", status=status)
        owner = Owner.current() if name == "lives" else Owner.current().model_copy(update={"started": 1})
        save_run(store, made.model_copy(update={"owner": owner}))
    asked = list[list[str]]()

    def listed(_client: Any, path: str, body: dict[str, Any]) -> Any:
        assert path == "/flow_runs/filter"
        asked.append(body["flow_runs"]["id"]["any_"])
        return SimpleNamespace(json=lambda: [{"id": "p-failed"}])

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(dead_runs, "post_patiently", listed)
    monkeypatch.setattr(dead_runs, "set_prefect_state", lambda run, kind, _text: told.append((run, kind)))
    assert mark_dead_runs(store) == []
    assert sorted(asked[0]) == ["p-failed", "p-there"] and told == [("p-failed", "FAILED")]


@pytest.fixture
def busy() -> Iterator[tuple[str, list[str]]]:
    """A Prefect server whose database is locked: every path is answered 503 twice. Its address; the paths it took."""
    asked, taken = list[str](), list[str]()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append(self.path)
            free = asked.count(self.path) > 2
            if free:
                taken.append(self.path)
            body = b'[{"id": "t"}]' if free else b"{}"
            self.send_response(200 if free else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            """Nothing to say."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", taken
        server.shutdown()


def test_prefect_is_waited_for_while_its_database_is_locked(
    busy: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    api, taken = busy
    monkeypatch.setenv("PREFECT_API_URL", api)
    dead_runs.set_prefect_state("r", "CRASHED", "it died")
    assert taken == ["/task_runs/filter", "/task_runs/t/set_state", "/flow_runs/r/set_state"]
    assert deployments.missing({"PREFECT_API_URL": api}) == []
    assert next(stack_doctor._prefect({"PREFECT_API_URL": api})).verdict == "warn", "its version is another"


def test_prefect_s_own_client_waits_for_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is begun and put into its states by Prefect's client. It has to be patient enough in our settings."""
    asked, answer = list[str](), {"id": str(uuid.uuid4()), "flow_id": str(uuid.uuid4()), "name": "quick-fox"}
    answer |= {"token": "t", "client": answer["id"], "expiration": "2100-01-01T00:00:00Z"}  # against forged requests

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append(self.path)
            free = asked.count(self.path) > 5
            body = json.dumps(answer if free else {}).encode()
            self.send_response(201 if free else 503)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            """Nothing to say."""

    waited = list[float]()
    monkeypatch.setattr("prefect.client.base.time.sleep", waited.append)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_address[1]}")
        with carried_out.settings_of_a_run(), get_client(sync_client=True) as client:
            run = client.create_flow_run(flow(name="f")(lambda: None))
        server.shutdown()
    assert str(run.id) == answer["id"] and asked.count("/flow_runs/") == 6
    assert sum(waited) / 2 > 30, "seconds that a database may be locked"


def test_a_prefect_that_hangs_is_said_to_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carried_out, "_HUNG_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never reads from one
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/api")
        with (
            pytest.raises(StackDown, match=r"does not answer within 0.2 s \(timed out\); `winnow logs prefect`"),
            settings_of_a_run(),
        ):
            pytest.fail("it went on")


def test_a_prefect_that_is_being_started_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's own client asks once where it never had an answer, and ends in a traceback of a hundred lines."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = ("127.0.0.1", closed.getsockname()[1])
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{address[1]}/api")
    monkeypatch.setattr(carried_out, "_HUNG_SECONDS", 0.3)
    with pytest.raises(StackDown, match=r"refused.*`winnow logs prefect`"), settings_of_a_run():
        pytest.fail("it went on")

    monkeypatch.setattr(carried_out, "_HUNG_SECONDS", 10)
    served = Event()

    def start_late() -> None:
        sleep(0.3)
        with ThreadingHTTPServer(address, SimpleHTTPRequestHandler) as server:
            server.handle_request()
            served.set()

    Thread(target=start_late, daemon=True).start()
    with settings_of_a_run():
        assert served.wait(5)


def test_a_killed_run_whose_release_is_undecided_is_left_until_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Memory()
    save_run(store, report())
    entry = begin(store)
    monkeypatch.setattr(Owner, "provably_dead", lambda _: True)
    assert mark_dead_runs(store) == []
    Ledger(store).commit(entry)  # as the reconciler does
    assert [run.status for run in mark_dead_runs(store)] == ["released"]
