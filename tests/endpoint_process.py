"""A real endpoint for tests: ``python -m serving`` in a process of its own, on free ports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from patience import PATIENCE, wait_for

TOKEN = "test-token"
ASK = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [5, 5]}]}
"""A request for the models of :func:`onnx_models.answer`."""
_LISTENING = re.compile(r"serving on (\S+), admin on ([^\s\"]+)")


def long(steps: int) -> dict[str, Any]:
    """A request for :func:`onnx_models.slow` that takes this many steps; 10 000 are a fraction of a second."""
    return {"inputs": [*ASK["inputs"], {"name": "steps", "shape": [1], "datatype": "INT64", "data": [steps]}]}


@dataclass
class Endpoint:
    """A running endpoint; ``log`` collects what it writes to stderr."""

    process: subprocess.Popen[str]
    home: Path
    url: str = ""
    admin_url: str = ""
    log: list[str] = field(default_factory=list)
    # One client for all calls (a TLS context takes 0.1 s), without TLS checks, which plain HTTP does not need.
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60, verify=False))

    def get(self, path: str) -> httpx.Response:
        return self.client.get(f"{self.url}{path}")

    def infer(self, model: str, body: Any, version: str = "") -> httpx.Response:
        part = f"/versions/{version}" if version else ""
        return self.client.post(f"{self.url}/v2/models/{model}{part}/infer", json=body)

    def admin(self, method: str, path: str, body: Any = None, token: str = TOKEN) -> httpx.Response:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return self.client.request(method, f"{self.admin_url}{path}", json=body, headers=headers)

    def deploy(self, model: str, version: str, digest: str) -> None:
        """Load a version and give it the traffic."""
        loaded = self.admin("PUT", f"/admin/models/{model}/versions/{version}", {"digest": digest})
        assert loaded.status_code == 200, loaded.text
        swapped = self.admin("POST", f"/admin/models/{model}/traffic", {"version": version})
        assert swapped.status_code == 200, swapped.text

    def version(self, model: str, version: str) -> dict[str, Any]:
        """What the admin listener says of a loaded version."""
        models = self.admin("GET", "/admin/models").json()["models"]
        found: dict[str, Any]
        (found,) = (v for m in models if m["model"] == model for v in m["versions"] if v["version"] == version)
        return found

    def wait_ready(self) -> None:
        wait_for(lambda: self.get("/v2/health/ready").status_code == 200)

    def wait_log(self, text: str) -> None:
        wait_for(lambda: any(text in line for line in self.log))

    def terminate(self, seconds: float = PATIENCE) -> int:
        self.process.terminate()
        return self.process.wait(timeout=seconds)


@contextmanager
def endpoint(home: Path, *, launcher: list[str] | None = None, wait: bool = True, **more: str) -> Iterator[Endpoint]:
    """Start an endpoint in our environment (the store's variables included); end it afterwards."""
    environment = {
        **os.environ,
        "WINNOW_HOME": str(home),
        "WINNOW_ENDPOINT_PORT": "0",
        "WINNOW_ADMIN_PORT": "0",
        "WINNOW_ADMIN_TOKEN": TOKEN,
        "PYTHONUNBUFFERED": "1",
        **more,
    }
    process = subprocess.Popen(
        launcher or [sys.executable, "-m", "serving"], env=environment, stderr=subprocess.PIPE, text=True
    )
    running = Endpoint(process, home)
    assert process.stderr is not None
    stream = process.stderr

    def read() -> None:
        for line in stream:
            running.log.append(line.rstrip())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        running.wait_log("serving on ")
        match = next(found for line in running.log if (found := _LISTENING.search(line)))
        running.url, running.admin_url = match[1], match[2]
        if wait:
            running.wait_ready()
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        reader.join(timeout=PATIENCE)
        stream.close()
        running.client.close()
