"""How the endpoint starts and ends: champions, a store that is down, corrupted files, signals, dependencies."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from endpoint_process import ASK, endpoint, long
from onnx_models import digits, numbered, publish, slow
from patience import wait_for

from model_registry.ledger import Ledger
from model_registry.store import Store
from model_registry.variant import RuntimeSpec


def release(store: Store, model: str, version: int, digest: str) -> None:
    ledger = Ledger(store)
    champion = ledger.champion(model)
    ledger.commit(ledger.begin(model, version, digest, expected_champion_seq=champion.seq if champion else 0))


def test_champions_are_served_from_the_start_and_a_broken_one_harms_no_other(store: Store, tmp_path: Path) -> None:
    one, two = numbered(store, tmp_path, 1), numbered(store, tmp_path, 2)
    alien = publish(store, tmp_path / "a", digits(tmp_path / "a", runtime=RuntimeSpec(cpu_class="sparc/vis")))
    release(store, "good", 1, one.digest)
    release(store, "good", 2, two.digest)
    release(store, "alien", 7, alien.digest)
    with endpoint(tmp_path / "home", wait=False) as running:
        wait_for(lambda: running.infer("good", ASK).status_code == 200)
        assert running.infer("good", ASK).json()["model_version"] == "2"
        wait_for(lambda: "sparc/vis" in running.get("/v2/models/alien/ready").text)
        assert running.get("/v2/models/alien/ready").status_code == 503
        told = running.get("/v2/health/ready")
        assert told.status_code == 503
        assert "alien" in told.json()["error"]
        assert "good" not in told.json()["error"]
        assert running.get("/v2/health/live").status_code == 200


def test_the_admin_listener_overrules_a_champion_that_is_still_tried(store: Store, tmp_path: Path) -> None:
    one = numbered(store, tmp_path, 1)
    release(store, "m", 1, "0" * 64)
    with endpoint(tmp_path / "home", wait=False) as running:
        wait_for(lambda: "it is not in the store" in running.get("/v2/models/m/ready").text)
        running.deploy("m", "2", one.digest)
        running.wait_ready()
        assert running.infer("m", ASK).json()["model_version"] == "2"


def test_a_corrupted_cache_is_fetched_anew_and_never_served(store: Store, tmp_path: Path) -> None:
    one, two = numbered(store, tmp_path, 1), numbered(store, tmp_path, 2)
    home = tmp_path / "home"
    with endpoint(home) as running:
        running.deploy("m", "1", one.digest)
    file = home / "endpoint-cache" / one.digest / "files" / "model.onnx"
    good, other = file.read_bytes(), (tmp_path / "2" / "model.onnx").read_bytes()
    assert two.digest != one.digest
    with endpoint(home) as running:
        for damage in ("a valid other model, and a file too many", "the manifest of another", "a link"):
            if damage == "a valid other model, and a file too many":
                file.write_bytes(other)
                file.with_name("more.bin").write_bytes(b"x")
            elif damage == "the manifest of another":
                file.parent.with_name("variant.json").write_bytes(two.to_json())
            else:
                file.unlink()
                file.symlink_to(tmp_path / "1" / "model.onnx")
            running.deploy("m", "1", one.digest)
            assert running.infer("m", ASK).json()["outputs"][0]["data"] == [1.0, 1.0], damage
            assert file.read_bytes() == good
            assert not file.is_symlink()
            running.admin("POST", "/admin/models/m/traffic", {"version": None})
            running.admin("DELETE", "/admin/models/m/versions/1")
    assert sorted(path.name for path in (home / "endpoint-cache").iterdir()) == [one.digest]


class Door:
    """A TCP port in front of the S3 server that can be closed and opened."""

    def __init__(self, target: str) -> None:
        where = urlsplit(target)
        self._target = (where.hostname, where.port)
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    @contextmanager
    def opened(self) -> Iterator[None]:
        with socket.create_server(("127.0.0.1", self.port)) as listener, ThreadPoolExecutor(32) as pool:
            pool.submit(self._accept, listener, pool)
            yield
            listener.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket, pool: ThreadPoolExecutor) -> None:
        while True:
            try:
                inner, _ = listener.accept()
            except OSError:
                return
            pool.submit(self._carry, inner, pool)

    def _carry(self, inner: socket.socket, pool: ThreadPoolExecutor) -> None:
        with inner, socket.create_connection(self._target) as outer:
            back = pool.submit(self._pump, outer, inner)
            self._pump(inner, outer)
            back.result()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def test_a_store_that_is_down_at_the_start_is_waited_for(store: Store, tmp_path: Path) -> None:
    one = numbered(store, tmp_path, 1)
    release(store, "m", 1, one.digest)
    door = Door(store.client.meta.endpoint_url)
    url = f"http://127.0.0.1:{door.port}"
    with ExitStack() as stack, endpoint(tmp_path / "home", wait=False, AWS_ENDPOINT_URL_S3=url) as running:
        wait_for(lambda: "ledger cannot be read" in running.get("/v2/health/ready").text)
        ready = running.get("/v2/health/ready").text
        assert "the store does not answer" in ready and str(door.port) not in ready, "clients learn no addresses"
        assert str(door.port) not in running.infer("m", ASK).text
        assert url in running.admin("GET", "/admin/models").json()["waiting_for"]
        assert running.get("/v2/health/live").status_code == 200
        assert running.infer("m", ASK).status_code == 503
        refused = running.admin("PUT", "/admin/models/m/versions/1", {"digest": one.digest})
        assert refused.status_code == 503
        assert "does not answer" in refused.json()["error"]
        stack.enter_context(door.opened())
        running.wait_ready()
        assert running.infer("m", ASK).json()["outputs"][0]["data"] == [1.0, 1.0]


def test_without_the_store_a_start_serves_what_was_served_last_until_the_ledger_says_more(
    store: Store, tmp_path: Path
) -> None:
    one, two = (numbered(store, tmp_path, number) for number in (1, 2))
    release(store, "m", 1, one.digest)
    door = Door(store.client.meta.endpoint_url)
    url, home = f"http://127.0.0.1:{door.port}", tmp_path / "home"
    with door.opened(), endpoint(home, AWS_ENDPOINT_URL_S3=url):
        wait_for(lambda: (home / "served.txt").exists())
    release(store, "m", 2, two.digest)
    with ExitStack() as stack, endpoint(home, AWS_ENDPOINT_URL_S3=url) as running:
        assert running.infer("m", ASK).json()["outputs"][0]["data"] == [1.0, 1.0]
        stack.enter_context(door.opened())
        wait_for(lambda: running.infer("m", ASK).json()["outputs"][0]["data"] == [2.0, 2.0])
        wait_for(lambda: running.get("/v2/models/m/versions/1").status_code == 404)
        wait_for(lambda: f"m/2@{two.digest}" in (home / "served.txt").read_text())


def test_sigterm_finishes_what_is_in_flight_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    crawling = publish(store, tmp_path / "slow", slow(tmp_path / "slow"))
    with endpoint(tmp_path / "home") as running, ThreadPoolExecutor(1) as pool:
        running.deploy("m", "1", crawling.digest)
        engine = psutil.Process(running.version("m", "1")["pid"])
        waiting = pool.submit(running.infer, "m", long(30_000))
        time.sleep(0.3)
        assert running.terminate() == 0
        assert waiting.result().status_code == 200
        assert not engine.is_running()
        assert any("stopped" in line for line in running.log)
        assert not any("Traceback" in line for line in running.log)


def test_engines_die_with_a_killed_endpoint(store: Store, tmp_path: Path) -> None:
    one = numbered(store, tmp_path, 1)
    with endpoint(tmp_path / "home") as running:
        running.deploy("m", "1", one.digest)
        engine = psutil.Process(running.version("m", "1")["pid"])
        running.process.kill()
        gone, _ = psutil.wait_procs([engine], timeout=10)
        assert gone
