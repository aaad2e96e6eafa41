"""Releases that die: each line ``MODEL VERSION DIGEST STEP`` on stdin is released by a process of its own, which kills
itself (SIGKILL) when it reaches the step; its exit status is answered on stdout.

The processes are forked from this one, so that MLflow is imported once and not for every death.
"""

from __future__ import annotations

import os
import signal
import sys

from model_registry.endpoint_client import Endpoint
from model_registry.registry import Registry
from model_registry.store import Store
from tasks.release.ledger_protocol import ReleaseProtocol


def release(model: str, version: str, digest: str, last: str) -> None:
    def note(step: str) -> None:
        if step == last:
            os.kill(os.getpid(), signal.SIGKILL)

    store = Store.from_environment()
    with Endpoint.from_environment() as endpoint:
        ReleaseProtocol(store, endpoint, Registry.from_environment(), model, note).release(int(version), digest)


def main() -> None:
    Registry.from_environment()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            release(*line.split())
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
