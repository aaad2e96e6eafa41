"""The endpoint on Ray Serve: how requests are handed on, and what becomes of them when a replica is killed."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from endpoint_process import ASK, endpoint
from measurements import measured
from onnx_models import numbered
from patience import PATIENCE, wait_for
from pydantic import ValidationError
from test_serving_startup import release

import winnow
from model_registry.api_keys import KeyFile
from model_registry.store import Store
from model_registry.variant_set import SetMember, VariantSets
from serving.limits import RequestLimits
from serving.owned_endpoint import start_owned_endpoint
from serving.ray_forwarder import RayForwarder

HERE = Path(__file__).parent


# -- following the ledger ------------------------------------------------------------------------------------------
def test_an_endpoint_follows_the_ledger_and_nothing_else(store: Store, tmp_path: Path) -> None:
    one, two, three = (numbered(store, tmp_path, number) for number in (1, 2, 3))
    release(store, "m", 1, one.digest)
    with endpoint(tmp_path / "home", WINNOW_FOLLOW_SECONDS="0.2") as running:
        assert running.infer("m", ASK).json()["model_version"] == "1"
        time.sleep(0.6)
        running.deploy("m", "3", three.digest)  # a release, before it is in the ledger
        running.admin("DELETE", "/admin/models/m/versions/1")
        time.sleep(1.0)
        assert running.infer("m", ASK).json()["model_version"] == "3"
        release(store, "m", 2, two.digest)
        release(store, "new", 1, one.digest)
        wait_for(lambda: running.infer("m", ASK).json()["model_version"] == "2")
        wait_for(lambda: running.infer("new", ASK).status_code == 200)
        wait_for(lambda: running.infer("m", ASK, "3").status_code == 404)  # nobody needs it any more
        release(store, "m", 4, "0" * 64)
        running.wait_log("model m stays as it is: version 4")
        assert running.infer("m", ASK).json()["model_version"] == "2"
        release(store, "m", 5, one.digest)
        wait_for(lambda: running.infer("m", ASK).json()["model_version"] == "5")

        def served() -> tuple[list[str], list[str]]:
            (model,) = (m for m in running.admin("GET", "/admin/models").json()["models"] if m["model"] == "m")
            return [v["version"] for v in model["versions"]], [member["version"] for member in model["set"]]

        sizes = {6: two, 7: three}
        VariantSets(store).write(
            "m", tuple(SetMember.of(number, measured("m", digest=v.digest)) for number, v in sizes.items())
        )
        release(store, "m", 6, two.digest)
        wait_for(lambda: served() == (["6", "7"], ["6", "7"]))
        release(store, "m", 8, one.digest)
        wait_for(lambda: served() == (["8"], []))


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "inf"])
def test_a_pause_that_is_none_is_told_at_the_start(tmp_path: Path, text: str) -> None:
    settings = {**os.environ, "WINNOW_HOME": str(tmp_path), "WINNOW_FOLLOW_SECONDS": text}
    command = [sys.executable, "-m", "serving"]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2 and "WINNOW_FOLLOW_SECONDS" in done.stderr


# -- an endpoint that belongs to another process -------------------------------------------------------------------
@contextmanager
def owned(store: Store, home: Path, **more: str) -> Iterator[tuple[subprocess.Popen[bytes], str, socket.socket]]:
    settings = {**os.environ, "WINNOW_HOME": str(home), **more}
    process, ours = start_owned_endpoint(1, settings)
    try:
        with ours.makefile() as lines:
            said = lines.readline()
            yield process, json.loads(said)["url"], ours
    finally:
        ours.close()
        process.kill()
        process.wait()


def test_an_owned_endpoint_leaves_with_its_owner(store: Store, tmp_path: Path) -> None:
    one = numbered(store, tmp_path, 1)
    release(store, "m", 1, one.digest)
    elsewhere = {"WINNOW_ENDPOINT_HOST": "0.0.0.0", "WINNOW_TLS_CERTIFICATE": "/none", "WINNOW_GRPC_PORT": "1"}
    with owned(store, tmp_path / "home", **elsewhere) as (process, url, ours):
        assert url.startswith("http://127.0.0.1:")
        wait_for(lambda: httpx.get(f"{url}/v2/health/ready").status_code == 200)
        engines = psutil.Process(process.pid).children(recursive=True)
        assert engines
        ours.shutdown(socket.SHUT_RDWR)  # what the kernel does when the owner is killed
        assert process.wait(timeout=PATIENCE) == 0
        _, alive = psutil.wait_procs(engines, timeout=10)
        assert not alive


# -- handing requests on -------------------------------------------------------------------------------------------
def forwarded(url: str, *requests: dict[str, Any]) -> list[tuple[int, dict[bytes, bytes], bytes]]:
    """What a forwarder to that endpoint answers."""

    async def ask(forward: RayForwarder, asked: dict[str, Any]) -> tuple[int, dict[bytes, bytes], bytes]:
        parts = list(asked.pop("parts", [b""]))
        sent = list[Any]()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "query_string": b"", "headers": [], "root_path": "", **asked}
        await forward(scope, receive, send)
        start, *rest = sent
        return start["status"], dict(start["headers"]), b"".join(message["body"] for message in rest)

    async def all_of_them() -> list[tuple[int, dict[bytes, bytes], bytes]]:
        forward = RayForwarder(url)
        answers = [await ask(forward, dict(request)) for request in requests]
        said: asyncio.Queue[Any] = asyncio.Queue()
        said.put_nowait({"type": "lifespan.shutdown"})
        await forward({"type": "lifespan"}, said.get, said.put)
        return answers

    return asyncio.run(all_of_them())


def test_requests_are_handed_on_as_they_are(store: Store, tmp_path: Path) -> None:
    one = numbered(store, tmp_path, 1)
    _, text = KeyFile(tmp_path / "keys.json").add("a client", models=("m",))
    with endpoint(tmp_path / "home", WINNOW_KEYS=str(tmp_path / "keys.json")) as running:
        running.deploy("m", "1", one.digest)
        body = httpx.Request("POST", "http://x", json=ASK).content
        key = (b"authorization", f"Bearer {text}".encode())
        infer = {"method": "POST", "path": "/v2/models/m/infer", "headers": [key]}
        parts = [body[:7], body[7:]]
        packed = {**infer, "headers": [key, (b"accept-encoding", b"gzip")], "parts": [body]}
        head = {"method": "HEAD", "path": "/v2/models/m", "headers": [key]}
        below = {**infer, "path": "/some/v2/models/m/infer", "root_path": "/some", "parts": parts}
        long = [b"x" * (1 << 20)] * (RequestLimits().body_bytes // (1 << 20) + 1)
        asked = forwarded(
            running.url,
            {**infer, "parts": parts},
            {**infer, "headers": [], "parts": parts},
            packed,
            head,
            {"path": "/v2/models/a/b", "raw_path": b"/v2/models/a%2Fb", "query_string": b"c=%20", "headers": [key]},
            below,
            {**infer, "parts": long},
            {"path": "/v2/health/live"},
        )
        direct = running.client.get(f"{running.url}/v2/models/a%2Fb?c=%20", headers={"authorization": f"Bearer {text}"})
    first, refused, gzipped, headed, escaped, *_ = asked
    assert escaped[2] == direct.content
    assert [status for status, _, _ in asked] == [200, 401, 200, 200, direct.status_code, 200, 413, 200]
    assert b'"model_version":"1"' in first[2] and first[1][b"content-length"] == b"%d" % len(first[2])
    assert refused[1][b"www-authenticate"] == b"Bearer"
    assert gzipped[1].get(b"content-encoding") != b"gzip" or gzipped[2][:2] == b"\x1f\x8b"
    assert headed[2] == b"" and int(headed[1][b"content-length"]) > 0
    (gone,) = forwarded(running.url, {"path": "/v2/health/live"})
    assert gone[0] == 503 and gone[1][b"retry-after"] == b"1" and b"send it again" in gone[2]


def test_settings_are_checked_before_ray_is_needed() -> None:
    for wrong in ({"min_replica": "1"}, {"cores": "0"}, {"pending": "many"}):
        with pytest.raises(ValidationError):
            winnow.ray_application(wrong)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_it_is_said_how_to_get_it() -> None:
    with pytest.raises(ImportError, match=r"pip install 'winnow-mlops\[ray\]'"):
        winnow.ray_application({})


# -- on a cluster --------------------------------------------------------------------------------------------------
@contextmanager
def cluster(folder: Path, **settings: str) -> Iterator[tuple[str, psutil.Process]]:
    """A local cluster with the application; its URL, and the process below which all of it runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "WINNOW_HOME": str(folder / "home"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": "/tmp",  # names of sockets are short
        **settings,
    }
    with (folder / "ray.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "ray_script.py"), str(port), "min_replicas=2", "max_replicas=2", "cores=1"],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    assert process.stdout is not None and process.stdin is not None
    try:
        for line in process.stdout:
            if line.startswith("ready"):
                break
        else:
            raise AssertionError((folder / "ray.log").read_text()[-4000:])
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.communicate(timeout=PATIENCE)  # its input ends, and so does it


def endpoints(root: psutil.Process) -> dict[int, int]:
    """Processes of the replicas' endpoints, with those of the replicas."""
    found = {}
    for process in root.children(recursive=True):
        try:
            if "serving.owned_endpoint" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = process.ppid()
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_replica_costs_what_it_had_in_hand_and_comes_back(store: Store, tmp_path: Path) -> None:
    """Whichever of its two processes it is."""
    clients = 4
    release(store, "m", 1, numbered(store, tmp_path, 1).digest)
    with cluster(tmp_path, WINNOW_FOLLOW_SECONDS="1") as (url, root):
        assert len(endpoints(root)) == 2
        stop, statuses = threading.Event(), list[int]()

        def load() -> None:
            with httpx.Client(timeout=30) as client:
                while not stop.is_set():
                    statuses.append(client.post(f"{url}/v2/models/m/infer", json=ASK).status_code)

        def kill_one(what: str) -> None:
            began = len(statuses)
            its_endpoint, replica = next(iter(endpoints(root).items()))
            psutil.Process(replica if what == "the replica" else its_endpoint).kill()
            wait_for(lambda: its_endpoint not in endpoints(root) and len(endpoints(root)) == 2)
            back = len(statuses)
            wait_for(lambda: len(statuses) >= back + 50)
            found = Counter(statuses[began:])
            assert sum(number for status, number in found.items() if status != 200) <= clients, (what, found)
            assert set(statuses[back + clients :]) == {200}

        with ThreadPoolExecutor(clients) as pool:
            loads = [pool.submit(load) for _ in range(clients)]
            try:
                wait_for(lambda: len(statuses) >= 50)
                assert set(statuses) == {200}
                kill_one("the replica")
                kill_one("its endpoint")
            finally:
                stop.set()
            for done in loads:
                done.result()
        release(store, "m", 2, numbered(store, tmp_path, 2).digest)

        def answers() -> set[str]:
            asked = [httpx.post(f"{url}/v2/models/m/infer", json=ASK) for _ in range(20)]
            return {answer.json()["model_version"] for answer in asked}

        wait_for(lambda: answers() == {"2"})
