"""Owners: this process, dead ones, and those of whom nothing can be said."""

from __future__ import annotations

import subprocess
import sys

import pytest

from model_registry import owner
from model_registry.owner import Owner


def test_this_process_lives() -> None:
    me = Owner.current()
    assert not me.provably_dead()
    assert me == Owner.model_validate_json(me.model_dump_json())
    assert str(me) == f"process {me.pid} on {me.host}"


def test_an_ended_process_is_dead_and_a_zombie_too() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = owner._started(child.pid)
    assert started is not None
    other = Owner.current().model_copy(update={"pid": child.pid, "started": started})
    assert not other.provably_dead()
    child.kill()
    while owner._started(child.pid) is not None:
        pass  # a zombie until we wait for it
    assert other.provably_dead()
    child.communicate()
    assert other.provably_dead()


def test_a_pid_used_again_is_another_process() -> None:
    earlier = Owner.current().model_copy(update={"started": 1})
    assert earlier.provably_dead()


@pytest.mark.parametrize("space", ["", "another boot/pid:[1]"])
def test_nothing_is_said_of_other_machines(space: str) -> None:
    assert not Owner(host="h", space=space, pid=999_999, started=1).provably_dead()
