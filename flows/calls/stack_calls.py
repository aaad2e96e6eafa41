"""``winnow.up`` and ``winnow.down``: the embedded stack, and how every call reaches it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from infra.faults import StackDown
from infra.recipes import QUIET
from infra.stack import Stack
from infra.startup import Event
from model_registry.store import Store

_SERVERS = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "WINNOW_STORE")


def up(ports: Mapping[str, int] | None = None) -> dict[str, str]:
    """Start the embedded stack, or what is missing of it, and wait until all of it answers.

    Everything listens on this machine alone and keeps its data in ``.winnow`` of the working directory, or WINNOW_HOME.

    Args:
        ports: by name: ``s3``, ``mlflow``, ``prefect``, ``endpoint``, ``admin``; the others stay as they were.

    Returns:
        The address of each server, by name.

    Raises:
        StackError: a port is taken, or a server does not start; what this call had started is ended again.
    """

    def say(event: Event) -> None:
        if event.phase == "waiting":
            print(event.text, file=sys.stderr, flush=True)

    states = Stack.from_environment().up(ports=ports, report=say)
    reach_stack()
    return {state.name: state.url for state in states if state.url}


def down() -> None:
    """Stop every process of the embedded stack. Its data stay."""
    Stack.from_environment().down()


def reach_stack() -> None:
    """Put into the environment how to reach the stack in WINNOW_HOME, or leave it where it names servers itself.

    Raises:
        StackDown: there is no stack, and the environment names no servers.
    """
    os.environ.update(QUIET)
    os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    try:
        os.environ.update(Stack.from_environment().environment())
    except StackDown as error:
        if not all(os.environ.get(name) for name in _SERVERS):
            raise StackDown(f"{error}, or winnow.up() in Python") from None


def reach_store() -> Store:
    """The store of the stack, or that of the environment."""
    try:
        os.environ.update(Stack.from_environment().environment())
    except StackDown:
        if not os.environ.get("WINNOW_STORE"):
            raise
    return Store.from_environment()
