"""``winnow promote`` and ``winnow rollback`` on real servers, as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RunningStack
from patience import PATIENCE
from release_world import World, new_name
from winnow_command import WINNOW

from infra.stack import Stack
from model_registry.endpoint_client import Endpoint
from model_registry.registry import Registry
from model_registry.store import Store


@pytest.fixture
def world(stack: RunningStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A model of our own with three registered versions, on the embedded stack."""
    for name, value in stack.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WINNOW_HOME", str(stack.home))
    with Endpoint.from_environment() as client:
        made = World(Store.from_environment(), Registry.from_environment(), client, new_name(), tmp_path)
        for version in (1, 2, 3):
            made.register(version)
        yield made


def winnow(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*WINNOW, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_promote_and_roll_back(world: World) -> None:
    first = winnow("promote", world.model, "1")
    assert first.returncode == 0, first.stderr
    assert f"{world.model} version 1 is the champion and serves at {world.endpoint.url}/v2/models/" in first.stdout
    assert world.state() == (1, 1.0, 1, [1])

    second = winnow("promote", world.model, "2", "--json")
    assert second.returncode == 0, second.stderr
    said = json.loads(second.stdout)
    assert (said["schema"], said["version"], said["previous_version"], said["changed"]) == (1, 2, 1, True)
    assert (said["digest"], said["seq"]) == (world.digest(2), 2)

    again = winnow("promote", world.model, "2")
    assert again.returncode == 0 and "is the champion already" in again.stdout

    back = winnow("rollback", world.model)
    assert back.returncode == 0, back.stderr
    assert world.state() == (1, 1.0, 1, [1])

    no_further = winnow("rollback", world.model)
    assert no_further.returncode == 1
    assert "NothingToRollBack" in no_further.stderr and "version 1 is its first champion" in no_further.stderr
    assert "Traceback" not in no_further.stderr


def test_what_fails_says_why_and_changes_nothing(world: World) -> None:
    world.release(1)
    missing = winnow("promote", world.model, "9")
    assert missing.returncode == 1 and "has no version 9; it has: 1, 2, 3" in missing.stderr
    world.register(4, recorded=5.0)
    wrong = winnow("promote", world.model, "4")
    assert wrong.returncode == 1 and "EndpointUnhealthy" in wrong.stderr
    assert "Traceback" not in missing.stderr + wrong.stderr
    assert world.state() == (1, 1.0, 1, [1])


def signalled(stack: RunningStack, name: str, number: int) -> None:
    """Send a signal to all processes of a component."""
    [pid] = [one.pid for one in Stack(stack.home).components() if one.name == name and one.pid]
    os.killpg(os.getpgid(pid), number)


def test_store_and_endpoint_are_enough(world: World, stack: RunningStack) -> None:
    world.release(1)
    signalled(stack, "mlflow", signal.SIGSTOP)  # it hangs: it takes connections and answers nothing
    for name in ("worker", "prefect"):
        signalled(stack, name, signal.SIGKILL)
    try:
        began = time.monotonic()
        done = winnow("promote", world.model, "2")
        assert done.returncode == 0, done.stderr
        assert "warning: MLflow does not show version 2 as champion" in done.stderr
        assert (world.champion(), world.answers()) == (2, 2.0)
        back = winnow("rollback", world.model)
        assert back.returncode == 0, back.stderr
        assert (world.champion(), world.answers()) == (1, 1.0)
        assert winnow("promote", world.model, "3").returncode == 0
        assert time.monotonic() - began < 60
    finally:
        signalled(stack, "mlflow", signal.SIGCONT)
    up = winnow("up")
    assert up.returncode == 0 and f"{world.model}: MLflow's alias champion was moved to the champion" in up.stdout
    assert world.state() == (3, 3.0, 3, [3])


def test_bad_usage_is_told_before_anything_is_imported() -> None:
    for arguments in (["promote", "m"], ["promote", "m", "0"], ["promote", "m", "x"], ["rollback"]):
        done = winnow(*arguments)
        assert done.returncode == 2, (arguments, done.stderr)


def test_help_shows_an_example() -> None:
    for command in ("promote", "rollback"):
        assert f"winnow {command} digits" in winnow(command, "--help").stdout


def test_without_a_stack_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("WINNOW_END", "MLFLOW_TRACK", "PREFECT_API", "WINNOW_STORE", "WINNOW_HOME")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    done = winnow("rollback", "digits")
    assert done.returncode == 1 and "winnow up" in done.stderr and "Traceback" not in done.stderr
