"""An endpoint of a benchmark's own: ``python -m serving`` on free ports, its variants in the cache, no store needed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from model_registry.variant import Variant

ROOT = Path(__file__).absolute().parent.parent.parent
MODEL = "m"
"""The name under which benchmarks serve."""
TOKEN = "benchmark"
_START_SECONDS = 60.0


@dataclass(frozen=True)
class OwnEndpoint:
    """A running endpoint, its ports on loopback."""

    process: psutil.Process
    port: int
    admin_port: int

    @property
    def url(self) -> str:
        """Where the model is asked."""
        return f"http://127.0.0.1:{self.port}/v2/models/{MODEL}/infer"

    def admin(self, method: str, path: str, value: Any = None) -> Any:
        """A call to the admin listener about the model; raises OSError with what it says where it refuses."""
        return call(method, f"http://127.0.0.1:{self.admin_port}/admin/models{path}", value)

    def load(self, version: int, variant: Variant) -> None:
        self.admin("PUT", f"/{MODEL}/versions/{version}", {"digest": variant.digest})

    def give_traffic(self, version: int) -> None:
        self.admin("POST", f"/{MODEL}/traffic", {"version": str(version)})

    def unload(self, version: int) -> None:
        self.admin("DELETE", f"/{MODEL}/versions/{version}")

    def serve(self, variant: Variant) -> None:
        """As version 1, as soon as the endpoint is there."""
        until(lambda: self.load(1, variant))
        self.give_traffic(1)

    def engines(self) -> list[int]:
        """Process ids of all versions' engines."""
        models = self.admin("GET", "")["models"]
        return [pid for model in models for version in model["versions"] for pid in version["pids"]]


def put_into_cache(home: Path, variant: Variant, files: Path) -> None:
    """Let the endpoint of that folder find the variant without a store."""
    cached = home / "endpoint-cache" / variant.digest
    cached.mkdir(parents=True)
    (cached / "variant.json").write_bytes(variant.to_json())
    shutil.copytree(files, cached / "files")


@contextmanager
def own_endpoint(
    home: Path, *, checkout: Path = ROOT, ports: tuple[int, int] | None = None, more: Mapping[str, str] | None = None
) -> Iterator[OwnEndpoint]:
    """Start it; it may not listen yet. It ends with the body, with all that it started.

    Args:
        home: its WINNOW_HOME.
        checkout: whose code is run.
        ports: for the clients and for the admin; free ones where there are none.
        more: variables of its environment; AWS_ENDPOINT_URL_S3 leads nowhere otherwise.
    """
    port, admin = ports or (free_port(), free_port())
    environment = {
        **os.environ,
        "PYTHONPATH": str(checkout),
        "PYTHONSAFEPATH": "1",
        "WINNOW_HOME": str(home),
        "WINNOW_ENDPOINT_PORT": str(port),
        "WINNOW_ADMIN_PORT": str(admin),
        "WINNOW_ADMIN_TOKEN": TOKEN,
        "WINNOW_STORE": "s3://nowhere",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        **(more or {}),
    }
    with running([sys.executable, "-m", "serving"], environment) as process:
        yield OwnEndpoint(process, port, admin)


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[psutil.Process]:
    """A server's process, ended with everything it started."""
    with subprocess.Popen(
        command, env=dict(environment), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as popen:
        process = psutil.Process(popen.pid)
        try:
            yield process
        finally:
            tree = process_tree(process)
            popen.terminate()
            _, left = psutil.wait_procs(tree, timeout=30)
            for other in left:
                other.kill()


def process_tree(process: psutil.Process) -> list[psutil.Process]:
    """The process and all that it started; none where it is gone."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(process: psutil.Process) -> float:
    """Of the process and all that it started and that still runs."""
    times = [p.cpu_times() for p in process_tree(process)]
    return sum(t.user + t.system for t in times)


def call(method: str, url: str, value: Any = None, body: bytes | None = None) -> Any:
    """The JSON answer to JSON or to a body; raises OSError with the text of an error."""
    data = body if body is not None else json.dumps(value).encode()
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
    request = urllib.request.Request(url, None if method == "GET" else data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise OSError(f"{method} {url}: {error.code} {error.read().decode()}") from error


def until(attempt: Callable[[], object], *, seconds: float = _START_SECONDS, pause: float = 0.1) -> None:
    """Try until it raises no OSError; raises the last one after the time."""
    end = time.monotonic() + seconds
    while True:
        try:
            attempt()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(pause)
        else:
            return


def free_port() -> int:
    """On loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
