"""Swaps, drains, crashes and failing loads on a running endpoint: what happens to requests meanwhile."""

from __future__ import annotations

import os
import signal
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
from conftest import Server
from endpoint_process import ASK, Endpoint, endpoint, long
from onnx_models import numbered, publish, slow
from patience import wait_for

from model_registry.store import Store
from serving.engines.usable_cores import usable_cores


@pytest.fixture(scope="module")
def shared(s3: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Endpoint, Store]]:
    """One endpoint and its store; each test uses models of its own and takes them away again."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3.environment, "WINNOW_STORE": "s3://rollout"}.items():
            patch.setenv(name, value)
        store = Store.from_environment()
        store.prepare()
        with endpoint(tmp_path_factory.mktemp("home")) as running:
            yield running, store


@pytest.fixture
def running(shared: tuple[Endpoint, Store]) -> Iterator[Endpoint]:
    endpoint_, _ = shared
    yield endpoint_
    for model in endpoint_.admin("GET", "/admin/models").json()["models"]:
        path = f"/admin/models/{model['model']}"
        endpoint_.admin("POST", f"{path}/traffic", {"version": None})
        for version in model["versions"]:
            endpoint_.admin("DELETE", f"{path}/versions/{version['version']}")
    wait_for(lambda: not engines(endpoint_))


@pytest.fixture
def store(shared: tuple[Endpoint, Store]) -> Store:
    return shared[1]


def engines(running: Endpoint) -> list[psutil.Process]:
    """The endpoint's engine processes."""
    children = psutil.Process(running.process.pid).children(recursive=True)
    return [child for child in children if child.name() == "winnow-engine"]


@contextmanager
def load_from_threads(running: Endpoint, model: str, count: int = 3) -> Iterator[list[tuple[int, Any, Any]]]:
    """Requests all the time from several keep-alive clients; yields (status, version, first value) of each."""
    answers: list[tuple[int, Any, Any]] = []
    stop = threading.Event()

    def client() -> None:
        with httpx.Client(base_url=running.url, timeout=60, verify=False) as session:
            while not stop.is_set():
                found = session.post(f"/v2/models/{model}/infer", json=ASK)
                body = found.json()
                value = body["outputs"][0]["data"] if found.status_code == 200 else body
                answers.append((found.status_code, body.get("model_version"), value))
                time.sleep(0.002)  # the machine has other work

    with ThreadPoolExecutor(count) as pool:
        clients = [pool.submit(client) for _ in range(count)]
        try:
            yield answers
        finally:
            stop.set()
        for done in clients:
            done.result()


def test_swaps_under_load_drop_nothing_and_mix_nothing_up(running: Endpoint, store: Store, tmp_path: Path) -> None:
    variants = {number: numbered(store, tmp_path, number) for number in range(1, 5)}
    running.deploy("m", "1", variants[1].digest)
    with load_from_threads(running, "m") as answers:
        for number in range(2, 5):
            running.deploy("m", str(number), variants[number].digest)
            gone = running.admin("DELETE", f"/admin/models/m/versions/{number - 1}")
            assert gone.status_code == 200, gone.text
            after = len(answers)
            wait_for(lambda after=after: len(answers) > after + 20)
    assert {status for status, _, _ in answers} == {200}
    assert all(value == [float(version)] * 2 for _, version, value in answers)
    assert set(Counter(version for _, version, _ in answers)) == {"1", "2", "3", "4"}
    assert running.infer("m", ASK, "1").status_code == 404
    wait_for(lambda: {e.pid for e in engines(running)} == set(running.version("m", "4")["pids"]))  # the old are gone


def test_an_old_version_stays_loaded_until_it_is_taken_away(running: Endpoint, store: Store, tmp_path: Path) -> None:
    one, two = numbered(store, tmp_path, 1), numbered(store, tmp_path, 2)
    running.deploy("m", "1", one.digest)
    running.deploy("m", "2", two.digest)
    assert running.infer("m", ASK, "1").json()["outputs"][0]["data"] == [1.0, 1.0]
    back = running.admin("POST", "/admin/models/m/traffic", {"version": "1"})
    assert back.json() == {"previous": "2"}
    assert running.infer("m", ASK).json()["model_version"] == "1"
    off = running.admin("POST", "/admin/models/m/traffic", {"version": None})
    assert off.json() == {"previous": "1"}
    assert running.infer("m", ASK).status_code == 503
    assert "traffic was taken away" in running.get("/v2/health/ready").json()["error"]
    for version in ("1", "2"):
        assert running.admin("DELETE", f"/admin/models/m/versions/{version}").status_code == 200
    assert running.get("/v2/models").json() == {"models": []}
    assert running.get("/v2/health/ready").status_code == 200


def test_taking_a_version_away_lets_its_requests_finish(running: Endpoint, store: Store, tmp_path: Path) -> None:
    crawling = publish(store, tmp_path / "slow", slow(tmp_path / "slow"))
    one = numbered(store, tmp_path, 1)
    with ThreadPoolExecutor(1) as pool:
        running.deploy("m", "1", crawling.digest)
        assert running.admin("PUT", "/admin/models/m/versions/2", {"digest": one.digest}).status_code == 200
        waiting = pool.submit(running.infer, "m", long(200_000))
        time.sleep(0.2)
        running.deploy("m", "2", one.digest)
        assert running.infer("m", ASK).json()["outputs"][0]["data"] == [1.0, 1.0]
        assert not waiting.done()
        assert running.admin("DELETE", "/admin/models/m/versions/1").status_code == 200
        # The delete answers only when the last request has its answer.
        assert waiting.result(timeout=1).status_code == 200


def test_killed_engines_cost_no_answer_and_are_replaced(running: Endpoint, store: Store, tmp_path: Path) -> None:
    crawling = publish(store, tmp_path / "slow", slow(tmp_path / "slow"))
    one = numbered(store, tmp_path, 1)
    running.deploy("m", "1", crawling.digest)
    running.deploy("other", "1", one.digest)
    wait_for(lambda: len(running.version("m", "1")["pids"]) == usable_cores())
    first = running.version("m", "1")["pids"]
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(running.infer, "m", long(100_000))
        time.sleep(0.1)
        os.kill(first[0], signal.SIGKILL)
        assert running.infer("other", ASK).status_code == 200
        assert waiting.result().status_code == 200
    wait_for(lambda: running.version("m", "1")["restarts"] == 1)
    now = running.version("m", "1")
    assert (now["state"], len(now["pids"])) == ("ready", len(first))
    assert first[0] not in now["pids"]
    assert running.get("/v2/health/ready").status_code == 200


def test_a_request_that_no_engine_survives_is_told_so(running: Endpoint, store: Store, tmp_path: Path) -> None:
    crawling = publish(store, tmp_path / "slow", slow(tmp_path / "slow"))
    running.deploy("m", "1", crawling.digest)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(running.infer, "m", long(2**62))
        killed = set[int]()
        while not waiting.done():
            time.sleep(0.1)
            for pid in set(running.version("m", "1")["pids"]) - killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        held = waiting.result()
    assert held.status_code == 503
    assert "died 2 times on this request" in held.json()["error"]
    assert held.headers["retry-after"] == "1"
    wait_for(lambda: running.infer("m", long(1)).status_code == 200)


def test_an_engine_that_dies_again_and_again_does_not_hurt_the_rest(
    running: Endpoint, store: Store, tmp_path: Path
) -> None:
    one, two = numbered(store, tmp_path, 1), numbered(store, tmp_path, 2)
    running.deploy("m", "1", one.digest)
    running.deploy("other", "2", two.digest)
    with load_from_threads(running, "other", 1) as answers:
        for times in (1, 2, 3, 4):
            wait_for(lambda: running.version("m", "1")["pid"] is not None)
            os.kill(running.version("m", "1")["pid"], signal.SIGKILL)
            wait_for(lambda times=times: running.version("m", "1")["restarts"] == times)
        running.wait_ready()
    assert {status for status, _, _ in answers} == {200}


def test_a_corrupted_store_object_is_refused_and_the_old_version_serves_on(
    running: Endpoint, store: Store, tmp_path: Path
) -> None:
    one, two = numbered(store, tmp_path, 1), numbered(store, tmp_path, 22)
    store.put(store.blob_key(two.file("model.onnx").sha256), (tmp_path / "1" / "model.onnx").read_bytes())
    running.deploy("m", "1", one.digest)
    refused = running.admin("PUT", "/admin/models/m/versions/2", {"digest": two.digest})
    assert refused.status_code == 422
    assert "quarantine" in refused.json()["error"]
    assert running.infer("m", ASK).json()["model_version"] == "1"
    assert running.get("/v2/models/m").json()["versions"] == ["1"]
    assert running.infer("m", ASK, "2").status_code == 404


def test_two_loads_of_one_version_at_once_are_one(running: Endpoint, store: Store, tmp_path: Path) -> None:
    one, two = numbered(store, tmp_path, 1), numbered(store, tmp_path, 2)
    path = "/admin/models/m/versions/1"
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(running.admin, "PUT", path, {"digest": one.digest}) for _ in range(3)]
        wait_for(lambda: any(found.done() for found in asked) or engines(running))
        other = pool.submit(running.admin, "PUT", path, {"digest": two.digest})
        assert [found.result().status_code for found in asked] == [200] * 3
        assert other.result().status_code == 409
    assert len({found.result().json()["pid"] for found in asked}) == 1
    wait_for(lambda: {engine.pid for engine in engines(running)} == set(running.version("m", "1")["pids"]))
