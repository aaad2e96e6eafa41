"""Real servers for the tests, one of each per session, and the promise that no process outlives pytest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

from infra import ports
from infra.component import Component
from infra.daemon import Daemon
from infra.home import Secrets, Settings
from infra.recipes import mlflow_server as mlflow_recipe
from infra.recipes import s3_server
from infra.stack import Stack
from model_registry.quiet import QUIET
from model_registry.store import Store

os.environ.update(QUIET)  # as every launcher does

# How long an example takes says something about the machine, nothing about the code.
hypothesis.settings.register_profile("winnow", deadline=None)
hypothesis.settings.load_profile("winnow")

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
def no_process_outlives_pytest() -> Iterator[None]:
    """Mark every process that the tests start, and have a reaper end them when pytest ends."""
    # A shell that starts pytest in the background has it ignore Ctrl-C, and all its children with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    mark = uuid.uuid4().hex
    os.environ["WINNOW_TEST_SESSION"] = mark
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
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
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


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """The whole embedded stack on free ports. Sets nothing in our own environment; tests that harm it repair it."""
    home = tmp_path_factory.mktemp("stack") / ".winnow"
    whole = Stack(home)
    names = [port.name for port in ports.PUBLIC]
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "WINNOW_"))]:
            if name != "WINNOW_TEST_SESSION":
                patch.delenv(name)
        try:
            whole.up(ports=dict(zip(names, ports.pick(len(names)), strict=True)))
            environment = whole.environment()
            yield RunningStack(home, environment)
        finally:
            whole.down()


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
    """A real MLflow server on SQLite, artifacts proxied to the S3 server; its URL."""
    home = tmp_path_factory.mktemp("mlflow")
    subprocess.run(
        [sys.executable, "-m", "infra.store_probe", "prepare"],
        env={**os.environ, **s3.environment, "WINNOW_STORE": "s3://mlflow"},
        check=True,
    )
    component = mlflow_recipe(home, ports.pick(1)[0], "s3://mlflow", "", s3.environment)
    daemon = _start(component, home)
    yield component.url
    daemon.end(grace=0)
