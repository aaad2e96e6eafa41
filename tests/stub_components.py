"""Components that start in a blink, for what is said of all components: a tiny HTTP server with chosen vices."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from infra.component import Component

_SERVER = """
import http.server, os, signal, subprocess, sys, time
port, vices = int(sys.argv[1]), sys.argv[2:]
if "deaf" in vices:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "parent" in vices:  # a child that leaves the session, as Prefect's flow runs do
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
if "runs" in vices:  # a child that is not its own work
    environment = {**os.environ, "WINNOW_TEST_RUN": "1"}
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True, env=environment)
if "dies" in vices:
    sys.exit("the database is on fire")
if "slow" in vices:
    time.sleep(600)
end = time.monotonic() + 4
while "chatty" in vices and time.monotonic() < end:
    print("migrating", flush=True)
    time.sleep(0.5)
while "busy" in vices and time.monotonic() < end:
    pass
class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Handler.asked += 1
        self.send_response(503 if "moody" in vices and Handler.asked % 2 else 200)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def stub(
    name: str, port: int, folder: Path, *vices: str, needs: Sequence[str] = (), patience: float = 20, grace: float = 2
) -> Component:
    """A component that answers 200 on the port. Vices: deaf, parent, runs, dies, slow, moody (503 every other time);
    chatty and busy take 4 s to start, in which they write to their log or compute."""
    url = f"http://127.0.0.1:{port}"
    return Component(
        name=name,
        title=f"stub {name}",
        argv=(sys.executable, "-S", "-c", _SERVER, str(port), *vices),
        folder=folder,
        url=url,
        health=(url,),
        needs=tuple(needs),
        patience=patience,
        grace=grace,
    )
