"""Where the stack is: its addresses and keys, put into the environment, from which all of Winnow reads them."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from model_registry.quiet import QUIET

if TYPE_CHECKING:
    from model_registry.store import Store

FOR_A_RUN = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "WINNOW_STORE")


def reach_for_a_release(*, remedy: str = "") -> None:
    """Export how to reach store and endpoint, and MLflow if it is there; raises StackDown without the first two."""
    needed = ("WINNOW_STORE", "WINNOW_ENDPOINT", "WINNOW_ENDPOINT_ADMIN")
    reach_stack(needed, components=("s3", "endpoint"), remedy=remedy)


def quiet_environment() -> None:
    """What every process that we start inherits: no telemetry, nobody's folder before ours, no server by accident."""
    os.environ.update(QUIET)
    sys.dont_write_bytecode = False  # Python has read the variable long ago
    os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


def reach_stack(needed: tuple[str, ...], *, components: tuple[str, ...] = (), remedy: str = "") -> None:
    """Export how to reach the embedded stack, or take somebody else's servers where the environment names all needed.

    Call it before Prefect is imported: Prefect reads its settings then.

    Args:
        needed: variables that name the servers where there is no embedded stack.
        components: those of the embedded stack that have to run; empty for all.
        remedy: what else would help where neither is there.

    Raises:
        StackDown: neither is there.
    """
    from infra.faults import StackDown
    from infra.stack import Stack

    try:
        stack = Stack.from_environment()
        os.environ.update(stack.environment(components) if components else stack.environment())
    except StackDown as error:
        if not all(os.environ.get(name) for name in needed):
            raise StackDown(f"{error}, or {remedy}" if remedy else str(error)) from None


def reach_store() -> Store:
    """The store of the embedded stack, or of the environment where there is none; raises StackDown for neither."""
    reach_stack(("WINNOW_STORE",), components=("s3",))
    from model_registry.store import Store

    return Store.from_environment()
