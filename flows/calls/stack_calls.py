"""``winnow.up`` and ``winnow.down``: the embedded stack, and how every call reaches it."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from flows.reaching import FOR_A_RUN, quiet_environment, reach_stack
from infra.stack import Stack
from infra.startup import Event


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
        if event.phase in ("waiting", "slow"):
            print(event.text, file=sys.stderr, flush=True)

    states = Stack.from_environment().up(ports=ports, report=say)
    reach_servers()
    return {state.name: state.url for state in states if state.url}


def down() -> None:
    """Stop every process of the embedded stack. Its data stay; nothing happens where none runs."""
    Stack.from_environment().down()


def reach_servers() -> None:
    """Put into the environment how to reach the stack in WINNOW_HOME, or leave it where it names servers itself.

    Raises:
        StackDown: there is no stack, and the environment names no servers.
    """
    quiet_environment()
    reach_stack(FOR_A_RUN, remedy="winnow.up() in Python")
