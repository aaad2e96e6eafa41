"""An endpoint that belongs to another process: it says where it listens, and leaves when its owner is gone.

Run as ``python -m serving.owned_endpoint DESCRIPTOR CORES``: a connected socket, on which a line of JSON is written
(``{"url": ..., "admin_url": ...}``), and how many cores its engines count on. It listens on free ports of loopback.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace

from serving.endpoint import EndpointMisconfigured, EndpointSettings, run_endpoint

_PLACES = {
    "WINNOW_ENDPOINT_HOST": "127.0.0.1",
    "WINNOW_ENDPOINT_PORT": "0",
    "WINNOW_ADMIN_HOST": "127.0.0.1",
    "WINNOW_ADMIN_PORT": "0",
    "PYTHONSAFEPATH": "1",
}
_NOT_ITS_OWN = ("WINNOW_TLS_", "WINNOW_GRPC_", "WINNOW_ADMIN_TOKEN")
"""The owner's certificate and port are for whoever asks the owner; nobody but the ledger changes what is served."""


def main() -> None:
    """Run it; exit 2 where its settings are wrong."""
    owner = socket.socket(fileno=int(sys.argv[1]))

    def listening(url: str, admin_url: str) -> None:
        owner.sendall(json.dumps({"url": url, "admin_url": admin_url}).encode() + b"\n")
        threading.Thread(target=_leave_with, args=(owner,), daemon=True).start()

    try:
        settings = EndpointSettings.from_environment()
        limits = replace(settings.limits, cores=int(sys.argv[2]))
        run_endpoint(replace(settings, limits=limits), listening=listening)
    except EndpointMisconfigured as error:
        print(f"endpoint: {error}", file=sys.stderr)
        sys.exit(2)


def start_owned_endpoint(cores: int, environment: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start one; our end of its socket: a line to read, then its end when the endpoint dies. Closing ends it.

    Args:
        environment: its settings, as for ``winnow serve``; where it listens, and with which certificate, is not theirs
            to say.
    """
    ours, theirs = socket.socketpair()
    settings = {name: value for name, value in environment.items() if not name.startswith(_NOT_ITS_OWN)}
    with theirs:
        command = [sys.executable, "-m", "serving.owned_endpoint", str(theirs.fileno()), str(cores)]
        process = subprocess.Popen(
            command, env=settings | _PLACES, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),)
        )
    return process, ours


def _leave_with(owner: socket.socket) -> None:
    """Wait for the owner's end, however it comes; then stop as on SIGTERM: requests in flight are finished first."""
    try:
        while owner.recv(4096):
            pass
    except OSError:  # reset: it is gone as well
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
