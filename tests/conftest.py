"""Real servers for the tests, one of each per session, and the promise that no process outlives pytest."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
from forked_runs import Forks
from forked_stages import WHERE, Nursery, fork_children
from winnow_command import environment

from infra import ports
from infra.component import Component
from infra.daemon import Daemon
from infra.home import Secrets, Settings
from infra.recipes import mlflow_server as mlflow_recipe
from infra.recipes import s3_server
from infra.stack import Stack
from model_registry.authorization import mlflow_authorization, prefect_authorization
from model_registry.quiet import QUIET
from model_registry.store import Store
from tasks.running import launch
from tasks.running.ray_local_cluster import LocalCluster, local_cluster

os.environ.update(QUIET)  # as every launcher does

# How long an example takes says something about the machine, nothing about the code.
# A run says something about the code alone, so it draws the same examples each time; the nightly one draws new ones.
hypothesis.settings.register_profile("winnow", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=500)
hypothesis.settings.load_profile("winnow")

MLFLOW_USER = {"MLFLOW_TRACKING_USERNAME": "tester", "MLFLOW_TRACKING_PASSWORD": "only-for-tests"}
SERVERS = {"s3", "stack"}
"""Fixtures that start servers; every other one that does stands on these."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs servers as slow, and order the files, which are handed to workers one by one: those that need the
    whole stack first, since they take longest, and those that measure last."""
    order: dict[Path, int] = {}
    without_ray = importlib.util.find_spec("ray") is None
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if SERVERS & fixtures:
            item.add_marker(pytest.mark.slow)
        if without_ray and item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.skip("needs Ray: make test-cluster, or pip install 'winnow-mlops[ray]'"))
        heavy = 2 if "stack" in fixtures else 1 if item.get_closest_marker("slow") else 0
        order[item.path] = -1 if item.get_closest_marker("alone") else max(heavy, order.get(item.path, 0))
    items.sort(key=lambda item: -order[item.path])


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before the clock of the test's timeout starts
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Of the workers on this machine, let one that runs a test marked alone be the only one at work."""
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        return (yield)


# Reads its pipe until pytest is gone, however it went (kill -9 too), and then kills all that carry the session's mark.
_REAPER = """
import os, signal, sys
mark = sys.argv[1].encode()
sys.stdin.buffer.read()
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        with open(f"/proc/{pid}/environ", "rb") as stream:
            ours = mark in stream.read().split(b"\\0")
        if ours and int(pid) != os.getpid():
            os.kill(int(pid), signal.SIGKILL)
    except OSError:
        pass
"""


@pytest.fixture(scope="session", autouse=True)
def no_process_outlives_pytest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Mark every process that the tests start, and have a reaper end them when pytest ends."""
    # A shell that starts pytest in the background has it ignore Ctrl-C, and all its children with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    mark = uuid.uuid4().hex
    os.environ["WINNOW_TEST_SESSION"] = mark
    # Nothing here depends on true latencies but what is marked alone: no worker waits for the stages of another.
    os.environ["WINNOW_MACHINE_LOCK"] = str(tmp_path_factory.mktemp("machine"))
    reaper = subprocess.Popen(
        [sys.executable, "-c", _REAPER, f"WINNOW_TEST_SESSION={mark}"], stdin=subprocess.PIPE, start_new_session=True
    )
    yield
    assert reaper.stdin is not None
    reaper.stdin.close()
    reaper.wait(timeout=30)


@dataclass(frozen=True)
class Server:
    """A running server: its URL, and what a process needs in its environment to reach it."""

    url: str
    environment: dict[str, str]


def _start(component: Component, home: Path) -> Daemon:
    daemon = Daemon(component.name, home)
    daemon.start(component)
    deadline = time.monotonic() + component.patience
    while not component.is_well():
        if daemon.running() is None or time.monotonic() > deadline:
            daemon.end(grace=0)
            pytest.fail(f"{component.title} did not start:\n" + "\n".join(daemon.tail(30)))
        time.sleep(0.1)
    return daemon


@pytest.fixture(scope="session")
def servers_wanted(request: pytest.FixtureRequest) -> None:
    """Fails a test that would start a server among those that need none."""
    if request.config.getoption("markexpr") == "not slow":
        pytest.fail("this test asks for a server in a way that conftest.py does not see: mark it slow")


@pytest.fixture(scope="session")
def nursery() -> Iterator[None]:
    """Stages of tests that have a store run in processes that are forked with everything imported."""
    made = Nursery()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(WHERE, made.path)
        patch.setattr(launch, "subprocess", subprocess)
        fork_children(launch)
        yield
    made.close()


@pytest.fixture(scope="session")
def s3(servers_wanted: None, nursery: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A SeaweedFS server on free ports with generated keys. Sets nothing in our own environment."""
    home = tmp_path_factory.mktemp("s3")
    settings, secrets = Settings(ports={"s3": ports.pick(1)[0]}), Secrets()
    component = s3_server(home, settings, secrets)
    daemon = _start(component, home)
    environment = {
        "AWS_ACCESS_KEY_ID": secrets.access_key,
        "AWS_SECRET_ACCESS_KEY": secrets.secret_key,
        "AWS_ENDPOINT_URL_S3": component.url,
        "AWS_REGION": "us-east-1",
    }
    yield Server(component.url, environment)
    daemon.end(grace=0)
    for left in component.litter:
        left.unlink(missing_ok=True)


@dataclass(frozen=True)
class RunningStack:
    """The embedded stack of the session: its folder, and what a process needs in its environment to reach it."""

    home: Path
    environment: dict[str, str]

    @property
    def mlflow_headers(self) -> dict[str, str]:
        """What MLflow wants with every request."""
        return mlflow_authorization(self.environment)

    @property
    def prefect_headers(self) -> dict[str, str]:
        """What Prefect's API wants with every request."""
        return prefect_authorization(self.environment)


@pytest.fixture(scope="session")
def stack(servers_wanted: None, nursery: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """The whole embedded stack on free ports. Sets nothing in our own environment; tests that harm it repair it."""
    home = tmp_path_factory.mktemp("stack") / ".winnow"
    whole = Stack(home)
    names = [port.name for port in ports.PUBLIC]
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "WINNOW_"))]:
            if name not in {"WINNOW_TEST_SESSION", "WINNOW_MACHINE_LOCK", WHERE}:
                patch.delenv(name)
        try:
            whole.up(ports=dict(zip(names, ports.pick(len(names)), strict=True)))
            yield RunningStack(home, whole.environment())
        finally:
            whole.down()


@pytest.fixture(scope="session")
def forks(stack: RunningStack) -> Iterator[Forks]:
    """Runs against the session's stack that start with everything imported."""
    made = Forks(environment(**stack.environment))
    yield made
    made.close()


@pytest.fixture(scope="module")
def cluster(s3: Server) -> Iterator[LocalCluster]:
    """A Ray cluster of two nodes of two cores on this machine, for a file of tests: they kill nodes."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    with (
        local_cluster(2, 2, {**ours, **s3.environment, "PYTHONPATH": path}) as made,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_ADDRESS", made.address)
        yield made
        import ray

        ray.shutdown()


@pytest.fixture
def store(s3: Server, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A prepared store with buckets of its own; ``Store.from_environment()`` and child processes reach it too."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WINNOW_STORE", f"s3://test-{uuid.uuid4().hex[:12]}")
    made = Store.from_environment()
    made.prepare()
    return made


@pytest.fixture(scope="session")
def mlflow_server(s3: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server on SQLite, artifacts proxied to the S3 server; its URL. Our environment has its password."""
    home = tmp_path_factory.mktemp("mlflow")
    subprocess.run(
        [sys.executable, "-m", "infra.store_probe", "prepare"],
        env={**os.environ, **s3.environment, "WINNOW_STORE": "s3://mlflow"},
        check=True,
    )
    component = mlflow_recipe(home, ports.pick(1)[0], "s3://mlflow", "", {**s3.environment, **MLFLOW_USER})
    daemon = _start(component, home)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in MLFLOW_USER.items():
            patch.setenv(name, value)
        yield component.url
    daemon.end(grace=0)
