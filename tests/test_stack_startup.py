"""How the stack is brought up and taken down, told with components that start in a blink."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Server
from stub_components import stub

from infra import ports, procfs, startup
from infra.component import Component
from infra.daemon import Daemon, census
from infra.faults import ComponentFailed, PortTaken, StackDown, StackError, StackMisconfigured
from infra.home import Secrets, Settings
from infra.stack import NAMES, Stack
from infra.startup import Event

pytestmark = pytest.mark.slow  # environments and processes are made for real


class StubbedStack(Stack):
    """A stack whose five components are stubs; ``vices`` are given by component."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.vices: dict[str, tuple[str, ...]] = {}
        self.prepared = 0
        self.events: list[Event] = []

    def _components(self, settings: Settings, secrets: Secrets) -> list[Component]:
        needs = {"worker": ("prefect",), "endpoint": ("s3",)}
        numbers = {**settings.ports, "worker": settings.inner_ports["worker"]}
        names = [
            name
            for name in ("s3", "mlflow", "prefect", "worker", "endpoint")
            if name != "s3" or not settings.s3_endpoint
        ]
        return [
            stub(name, numbers[name], self.home.path, *self.vices.get(name, ()), needs=needs.get(name, ()), patience=6)
            for name in names
        ]

    def _prepare_store(self, settings: Settings, secrets: Secrets) -> None:
        if settings.s3_endpoint:
            super()._prepare_store(settings, secrets)
        self.prepared += 1

    def pids(self) -> dict[str, int | None]:
        return {state.name: state.pid for state in self.components()}

    def start(self, **given: object) -> None:
        self.events.clear()
        self.up(report=self.events.append, **given)  # type: ignore[arg-type]

    def told(self, phase: str) -> set[str]:
        return {event.name for event in self.events if event.phase == phase}


@pytest.fixture
def stubbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubbedStack]:
    for name in [name for name in os.environ if name.startswith(("AWS_", "WINNOW_")) and name != "WINNOW_TEST_SESSION"]:
        monkeypatch.delenv(name)
    for port, number in zip(ports.PUBLIC, ports.pick(len(ports.PUBLIC)), strict=True):
        monkeypatch.setenv(port.variable, str(number))
    stack = StubbedStack(tmp_path / ".winnow")
    yield stack
    stack.down()


def kill(pid: int | None) -> None:
    """kill -9, and wait until it is so."""
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    while (now := procfs.look_at_process(pid)) is not None and not now.zombie:
        time.sleep(0.01)


ALL = set(NAMES)


def test_up_starts_each_after_what_it_needs_and_remembers_the_ports(
    stubbed: StubbedStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubbed.start()
    order = [(event.name, event.phase) for event in stubbed.events]
    assert order.index(("prefect", "well")) < order.index(("worker", "starting"))
    assert order.index(("s3", "well")) < order.index(("endpoint", "starting"))
    assert order.index(("mlflow", "starting")) < order.index(("s3", "well"))  # side by side
    assert stubbed.prepared == 1
    assert {state.state for state in stubbed.components()} == {"up"}
    assert stubbed.environment()["MLFLOW_TRACKING_URI"].endswith(os.environ["WINNOW_MLFLOW_PORT"])
    for port in ports.PUBLIC:
        monkeypatch.delenv(port.variable)
    before = stubbed.pids()
    stubbed.start()
    assert stubbed.told("found") == ALL and stubbed.pids() == before


def test_only_what_is_missing_is_started_again(stubbed: StubbedStack) -> None:
    stubbed.start()
    before = stubbed.pids()
    for name in ("mlflow", "prefect"):
        kill(before[name])
    with pytest.raises(StackDown, match=r"lacks mlflow, prefect; start it with `winnow up`"):
        stubbed.environment()
    assert not stubbed.is_up()
    stubbed.start()
    after = stubbed.pids()
    assert {name for name in ALL if before[name] != after[name]} == {"mlflow", "prefect"}
    assert stubbed.is_up()


def test_a_hung_component_is_replaced(stubbed: StubbedStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.stack._ANSWER_PATIENCE", 0.5)
    stubbed.start()
    before = stubbed.pids()
    os.kill(before["endpoint"] or 0, signal.SIGSTOP)
    assert {state.name for state in stubbed.components() if state.state == "hung"} == {"endpoint"}
    stubbed.start()
    assert ("endpoint", "it did not answer") in {(e.name, e.text) for e in stubbed.events if e.phase == "ended"}
    assert {state.state for state in stubbed.components()} == {"up"}


def test_one_that_is_busy_for_a_moment_is_not_called_hung(stubbed: StubbedStack) -> None:
    """Prefect answers 503 while its SQLite is locked."""
    stubbed.vices = {"prefect": ("moody",)}
    stubbed.start()
    assert [{one.name: one.state for one in stubbed.components()}["prefect"] for _ in range(3)] == ["up"] * 3


def test_a_changed_setting_restarts_what_it_concerns(stubbed: StubbedStack, monkeypatch: pytest.MonkeyPatch) -> None:
    stubbed.start()
    before = stubbed.pids()
    [moved] = ports.pick(1)
    stubbed.start(ports={"mlflow": moved})
    monkeypatch.delenv("WINNOW_MLFLOW_PORT")  # where there is one, it counts for more than what is remembered
    after = stubbed.pids()
    assert {name for name in ALL if before[name] != after[name]} == {"mlflow"}
    assert stubbed.environment()["MLFLOW_TRACKING_URI"] == f"http://127.0.0.1:{moved}"
    stubbed.vices = {"prefect": ("deaf",)}  # another recipe on the same port, which its predecessor still holds
    stubbed.start()
    assert {name for name in ALL if after[name] != stubbed.pids()[name]} == {"prefect"}


def test_a_taken_port_is_told_before_anything_is_started_or_ended(stubbed: StubbedStack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"{number} is taken by .*pid {os.getpid()}.*--prefect-port"):
            stubbed.start(ports={"prefect": number})
        assert census(stubbed.home.path) == {}
        stubbed.start()
        before = stubbed.pids()
        with pytest.raises(PortTaken):
            stubbed.start(ports={"prefect": number})
    assert stubbed.pids() == before
    stubbed.start()
    assert stubbed.pids() == before  # the refused port was not remembered


def test_a_failure_ends_what_was_started_and_shows_the_log(stubbed: StubbedStack) -> None:
    stubbed.vices = {"mlflow": ("dies",), "prefect": ("parent",)}
    with pytest.raises(ComponentFailed) as failed:
        stubbed.start()
    text = str(failed.value)
    assert "stub mlflow ended while starting" in text and "the database is on fire" in text
    assert str(Daemon("mlflow", stubbed.home.path).log_file) in text
    assert census(stubbed.home.path) == {}
    with pytest.raises(StackDown):
        stubbed.environment()


def test_a_component_that_never_answers_is_a_failure(stubbed: StubbedStack) -> None:
    stubbed.vices = {"worker": ("slow",)}
    with pytest.raises(ComponentFailed, match=r"stub worker was not ready after \d+ s"):
        stubbed.start()
    assert census(stubbed.home.path) == {}


@pytest.mark.parametrize("vice", ["chatty", "busy"])
def test_a_slow_start_is_not_ended_while_it_gets_on(
    stubbed: StubbedStack, vice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "_MENTIONED_AFTER", 1.0)
    component = stub("mlflow", ports.pick(1)[0], stubbed.home.path, vice, patience=2)
    stubbed.home.create()
    try:
        startup.Startup(stubbed.home.path, [component], stubbed.events.append, prepare=lambda: None).run()
    finally:
        Daemon("mlflow", stubbed.home.path).end(1)
    phases = [event.phase for event in stubbed.events]
    assert (phases[0], set(phases[1:-1]), phases[-1]) == ("starting", {"slow"}, "well")
    assert re.fullmatch(r"the stub mlflow is not ready after \d s", stubbed.events[1].text)


def test_a_start_that_works_for_ever_is_ended(stubbed: StubbedStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "_MOST_PATIENCES", 1)
    component = stub("mlflow", ports.pick(1)[0], stubbed.home.path, "chatty", patience=1)
    stubbed.home.create()
    with pytest.raises(ComponentFailed, match=r"stub mlflow worked for \d s and was still not ready"):
        startup.Startup(stubbed.home.path, [component], stubbed.events.append, prepare=lambda: None).run()
    assert census(stubbed.home.path) == {}


def test_a_failure_does_not_end_what_ran_before(stubbed: StubbedStack) -> None:
    stubbed.start()
    before = stubbed.pids()
    kill(before["mlflow"])
    stubbed.vices = {"mlflow": ("dies",)}
    with pytest.raises(ComponentFailed):
        stubbed.start()
    after = stubbed.pids()
    assert {name for name in ALL if before[name] == after[name]} == ALL - {"mlflow"}


def test_choices_of_a_failed_up_are_not_remembered(stubbed: StubbedStack) -> None:
    stubbed.vices = {"mlflow": ("dies",)}
    with pytest.raises(ComponentFailed):
        stubbed.start()
    assert stubbed.home.settings() is None and stubbed.home.secrets() is None
    stubbed.vices = {}
    stubbed.start()
    before = stubbed.home.settings()
    stubbed.vices = {"mlflow": ("dies",)}
    with pytest.raises(ComponentFailed):
        stubbed.start(ports={"mlflow": ports.pick(1)[0]})
    assert stubbed.home.settings() == before


def test_ctrl_c_leaves_nothing_behind(stubbed: StubbedStack) -> None:
    stubbed.vices = {"mlflow": ("slow",)}
    threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        stubbed.start()
    assert census(stubbed.home.path) == {}


def test_two_ups_at_once_start_one_stack(stubbed: StubbedStack) -> None:
    other = StubbedStack(stubbed.home.path)
    threads = [threading.Thread(target=one.start) for one in (stubbed, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    starts = [event.name for one in (stubbed, other) for event in one.events if event.phase == "starting"]
    assert sorted(starts) == sorted(ALL)
    assert {len(members) for members in census(stubbed.home.path).values()} == {1}


def test_everything_killed_comes_back(stubbed: StubbedStack) -> None:
    stubbed.vices = {"worker": ("parent",)}
    stubbed.start()
    children = {process.pid for process in census(stubbed.home.path)["worker"]}
    for pid in stubbed.pids().values():
        kill(pid)
    assert {state.state for state in stubbed.components()} == {"down"}
    stubbed.start()
    assert {state.state for state in stubbed.components()} == {"up"}
    assert children.isdisjoint(process.pid for process in census(stubbed.home.path)["worker"])  # the orphan is gone


def test_down_ends_the_writers_first_and_all_of_them(stubbed: StubbedStack) -> None:
    stubbed.vices = {"worker": ("parent",), "mlflow": ("deaf",)}
    stubbed.start()
    kill(stubbed.pids()["prefect"])  # half of it is dead already
    told: list[Event] = []
    ended = stubbed.down(report=told.append)
    assert ended == {"worker": 2, "mlflow": 1, "endpoint": 1, "s3": 1, "log-keeper": 1}
    assert (told[0].name, told[-1].name) == ("worker", "s3")
    assert census(stubbed.home.path) == {}
    assert stubbed.down() == {}


def test_down_ends_what_an_earlier_version_started(stubbed: StubbedStack) -> None:
    stubbed.start()
    old = Daemon("queue", stubbed.home.path)
    old.start(stub("queue", ports.pick(1)[0], stubbed.home.path))
    assert stubbed.down()["queue"] == 1
    assert old.members() == []


def test_down_without_a_stack_does_nothing(tmp_path: Path) -> None:
    assert Stack(tmp_path / "nowhere").down() == {}
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(StackDown, match=r"no stack in .*nowhere; start one with `winnow up`"):
        Stack(tmp_path / "nowhere").environment()


# -- an S3 that is not ours -------------------------------------------------------------------------------------------
def test_an_external_s3_is_used_and_no_server_started(
    stubbed: StubbedStack, s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WINNOW_STORE", "s3://external-store")
    stubbed.start()
    states = {state.name: state for state in stubbed.components()}
    assert (states["s3"].state, states["s3"].pid, states["s3"].url) == ("external", None, s3.url)
    assert "s3" not in census(stubbed.home.path)
    environment = stubbed.environment()
    assert environment["AWS_ENDPOINT_URL_S3"] == s3.url
    assert environment["AWS_SECRET_ACCESS_KEY"] == s3.environment["AWS_SECRET_ACCESS_KEY"]
    assert s3.environment["AWS_SECRET_ACCESS_KEY"] not in stubbed.home.secrets_file.read_text()
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    stubbed.start()  # remembered
    assert stubbed.told("found") == ALL - {"s3"}


def test_wrong_keys_of_an_external_s3_are_told_before_anything_starts(
    stubbed: StubbedStack, s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**s3.environment, "AWS_SECRET_ACCESS_KEY": "wrong"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StackError, match=r"AWS_SECRET_ACCESS_KEY"):
        stubbed.start()
    assert census(stubbed.home.path) == {}


def test_our_own_address_in_the_environment_is_not_external(
    stubbed: StubbedStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubbed.start()
    before = stubbed.pids()
    for name, value in stubbed.environment().items():  # a shell that exported it all
        monkeypatch.setenv(name, value)
    stubbed.start()
    assert stubbed.pids() == before


# -- settings ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"s3": "minio:9000"}, "the S3 endpoint 'minio:9000' is no URL"),
        ({"mlflow_db": "oracle://x"}, "starts with 'oracle'"),
        ({"ports": {"mlfow": 1}}, "no port is called mlfow"),
    ],
)
def test_a_setting_that_cannot_work_is_told(stubbed: StubbedStack, given: dict[str, object], text: str) -> None:
    with pytest.raises(StackMisconfigured, match=text):
        stubbed.start(**given)
    assert census(stubbed.home.path) == {}


def test_a_port_of_the_environment_that_is_none_is_told(stubbed: StubbedStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_S3_PORT", "http")
    with pytest.raises(StackMisconfigured, match=r"WINNOW_S3_PORT='http' is no port"):
        stubbed.start()


def test_a_company_proxy_is_not_asked_for_loopback(stubbed: StubbedStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)  # of a stack of the tests before
    monkeypatch.setenv("no_proxy", "intra.example")
    stubbed.start()
    environment = stubbed.environment()
    assert environment["NO_PROXY"] == environment["no_proxy"] == "intra.example,127.0.0.1,localhost"


def test_a_recipe_is_known_by_what_matters(tmp_path: Path) -> None:
    one = stub("s3", 1, tmp_path)
    assert one.recipe == replace(one, environment={"NO_PROXY": "x"}, patience=1).recipe
    assert one.recipe != replace(one, environment={"AWS_REGION": "x"}).recipe
    assert one.recipe != replace(one, argv=(*one.argv, "deaf")).recipe


def test_up_is_quick_to_notice_that_all_runs(stubbed: StubbedStack) -> None:
    stubbed.start()
    begun = time.monotonic()
    stubbed.start()
    assert time.monotonic() - begun < 3


def test_nobody_inherits_the_lock(stubbed: StubbedStack) -> None:
    stubbed.start()
    lock = stubbed.home.path / "run" / "stack.lock"
    done = subprocess.run(["flock", "--nonblock", str(lock), "true"], check=False)
    assert done.returncode == 0
