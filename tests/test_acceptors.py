"""Connections that acceptors hold for the front: what clients see is the same, and who dies is replaced."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from conftest import Server
from endpoint_process import ASK, Endpoint, endpoint
from hypothesis import given
from hypothesis import strategies as st
from onnx_models import answer, digits, publish
from patience import wait_for
from server_certificate import server_certificate

from model_registry.store import Store
from serving.acceptors.accepted_connections import AcceptorLink
from serving.acceptors.acceptor_frames import Frame, LinkBroken, LinkReader, LinkWriter, Said, frame_head
from serving.side_process import RestartPause

IMAGE = {"name": "image", "datatype": "FP32"}


# -- frames -----------------------------------------------------------------------------------------------------------
class Sink(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close


def packed(*frames: Frame) -> bytes:
    return b"".join(frame_head(number, said, len(data)) + data for number, said, data in frames)


def test_what_a_turn_of_the_loop_brings_goes_in_one_write() -> None:
    async def scene() -> None:
        sink, writer = Sink(), LinkWriter()
        writer.begin(sink)
        writer.say(1, Said.OPEN)
        writer.say(1, Said.DATA, b"abc")
        assert not sink.written
        await asyncio.sleep(0)
        assert sink.written == packed(Frame(1, Said.OPEN, b""), Frame(1, Said.DATA, b"abc"))
        sink.close()
        writer.say(1, Said.LOST)  # said to nobody

    asyncio.run(scene())


@given(
    st.lists(st.builds(Frame, st.integers(0, 2**32 - 1), st.sampled_from(Said), st.binary(max_size=40)), max_size=6),
    st.lists(st.integers(1, 60), max_size=30),
)
def test_frames_arrive_whole_whatever_the_pieces(frames: list[Frame], pieces: list[int]) -> None:
    data, reader, found = packed(*frames), LinkReader(), list[Frame]()
    while data:
        size = pieces.pop(0) if pieces else 23
        found += reader.feed(data[:size])
        data = data[size:]
    assert found == frames


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff\x01\x00\x00\x00\x01", b"\x00\x00\x00\x00\x01\x00\x00\x00\x0c"])
def test_frames_that_cannot_be_end_the_link(data: bytes) -> None:
    with pytest.raises(LinkBroken):
        list(LinkReader().feed(data))

    async def scene() -> None:
        link, sink = AcceptorLink(asyncio.Protocol), Sink()
        link.connection_made(sink)
        link.data_received(data)
        assert sink.closed

    asyncio.run(scene())


class Noting(asyncio.Protocol):
    """A connection that notes what happens to it."""

    def __init__(self, said: list[Any], keep: bool) -> None:
        self.said, self.keep = said, keep

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.said.append(transport)

    def data_received(self, data: bytes) -> None:
        self.said.append(data)

    def eof_received(self) -> bool:
        self.said.append("end")
        return self.keep

    def connection_lost(self, exc: Exception | None) -> None:
        self.said.append("lost")

    def pause_writing(self) -> None:
        self.said.append("pause")

    def resume_writing(self) -> None:
        self.said.append("resume")


def hear(*frames: Frame, keep: bool = False, then: Callable[[AcceptorLink], None] | None = None) -> list[Any]:
    """What a connection notes while the front hears these frames."""

    async def scene() -> list[Any]:
        said = list[Any]()
        link = AcceptorLink(lambda: Noting(said, keep))
        link.connection_made(Sink())
        link.data_received(packed(*frames))
        if then is not None:
            then(link)
        return said[1:]

    return asyncio.run(scene())


def test_a_connection_hears_of_its_client_what_a_socket_would_say() -> None:
    opened, data = Frame(7, Said.OPEN, b""), Frame(7, Said.DATA, b"x")
    assert hear(opened, data, Frame(8, Said.DATA, b"of another")) == [b"x"]
    assert hear(opened, Frame(7, Said.END, b""), data) == ["end"]  # it was closed: nothing more is heard
    assert hear(opened, Frame(7, Said.END, b""), data, keep=True) == ["end", b"x"]
    assert hear(Frame(7, Said.OPEN, b"\x01"), Frame(7, Said.END, b""), data, keep=True) == ["end"]  # TLS has no halves
    assert hear(opened, Frame(7, Said.LOST, b""), data) == ["lost"]
    assert hear(opened, then=lambda link: link.connection_lost(None)) == ["lost"]


def test_a_connection_writes_while_neither_its_client_nor_the_link_is_full() -> None:
    opened, full, drained = Frame(7, Said.OPEN, b""), Frame(7, Said.FULL, b""), Frame(7, Said.DRAINED, b"")

    def both(link: AcceptorLink) -> None:
        link.pause_writing()
        link.data_received(packed(drained))
        link.resume_writing()

    assert hear(opened, full, full, drained) == ["pause", "resume"]
    assert hear(opened, full, then=both) == ["pause", "resume"]


# -- real ones --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def held(s3: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Endpoint, Path]]:
    """An endpoint over TLS whose connections two acceptors hold, and its certificate."""
    folder = tmp_path_factory.mktemp("acceptors")
    certificate, key, _ = server_certificate(folder)
    settings = {**s3.environment, "WINNOW_STORE": "s3://accepted", "WINNOW_ENDPOINT_ACCEPTORS": "2"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        store = Store.from_environment()
        store.prepare()
        classes = publish(store, folder / "digits", digits(folder / "digits"))
        simple = publish(store, folder / "answer", answer(folder / "answer", 1))
        with endpoint(folder / "home", WINNOW_TLS_CERTIFICATE=str(certificate), WINNOW_TLS_KEY=str(key)) as running:
            running.deploy("digits", "1", classes.digest)
            running.deploy("m", "1", simple.digest)
            yield running, certificate


def acceptors(running: Endpoint) -> list[psutil.Process]:
    found = list[psutil.Process]()
    for child in psutil.Process(running.process.pid).children():
        with suppress(psutil.NoSuchProcess):  # it was killed a moment ago
            if "serving.acceptors.acceptor_process" in child.cmdline():
                found.append(child)
    return found


def test_what_ends_is_started_again_ever_more_slowly_until_it_has_been_well(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pause, found = RestartPause(0.25), list[float]()
    for _ in range(9):
        pause.begin()
        found.append(pause.after())
    assert found == [0.25, 0.5, 1, 2, 4, 8, 16, 30, 30]
    pause.begin()
    now += 61
    assert pause.after() == 0.25
    pause.begin()
    assert pause.after() == 0.5


def test_requests_of_any_size_over_tls(held: tuple[Endpoint, Path]) -> None:
    running, certificate = held
    with httpx.Client(verify=ssl.create_default_context(cafile=str(certificate)), timeout=60) as client:
        assert client.post(f"{running.url}/v2/models/m/infer", json=ASK).status_code == 200
        for rows in (1, 8000):
            body = {"inputs": [{**IMAGE, "shape": [rows, 1, 8, 8], "data": [8] * 64 * rows}]}
            answered = client.post(f"{running.url}/v2/models/digits/infer", json=body)
            assert answered.json()["outputs"][0]["shape"] == [rows, 10]
    described = running.admin("GET", "/admin/status").json()["front"]["acceptors"]
    assert [each["state"] for each in described] == ["ready", "ready"]


def test_clients_that_hang_up_are_forgotten(held: tuple[Endpoint, Path]) -> None:
    running, certificate = held
    host, port = running.url.removeprefix("https://").split(":")
    context = ssl.create_default_context(cafile=str(certificate))

    def open_now() -> int:
        found: int = running.admin("GET", "/admin/status").json()["front"]["connections"]
        return found

    with ExitStack() as clients:
        for _ in range(8):  # more than the tests before may have left for a while
            client = context.wrap_socket(socket.create_connection((host, int(port))), server_hostname=host)
            clients.enter_context(client)
            client.sendall(b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        wait_for(lambda: open_now() >= 8)
    wait_for(lambda: open_now() < 8)


def test_an_acceptor_that_is_killed_costs_what_it_had_in_flight_and_no_more(held: tuple[Endpoint, Path]) -> None:
    running, certificate = held
    context = ssl.create_default_context(cafile=str(certificate))
    stop, good, lost = threading.Event(), list[int](), list[Exception]()

    def ask() -> None:
        while not stop.is_set():
            with httpx.Client(verify=context, timeout=60) as client:
                try:
                    good.append(client.post(f"{running.url}/v2/models/m/infer", json=ASK).status_code)
                except httpx.TransportError as error:
                    lost.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        time.sleep(0.5)
        victim = acceptors(running)[0]
        os.kill(victim.pid, signal.SIGKILL)
        wait_for(lambda gone=victim.pid: gone not in [each.pid for each in acceptors(running)])
        wait_for(lambda: len(acceptors(running)) == 2)
    before = len(good)
    wait_for(lambda: len(good) > before + 20)
    stop.set()
    for thread in threads:
        thread.join()
    assert set(good) == {200} and len(lost) <= 8
    described = running.admin("GET", "/admin/status").json()["front"]["acceptors"]
    assert sum(each["restarts"] for each in described) == 2


def test_an_end_lets_answers_through_and_leaves_no_process(held: tuple[Endpoint, Path]) -> None:
    running, certificate = held
    host, port = running.url.removeprefix("https://").split(":")
    context, started = ssl.create_default_context(cafile=str(certificate)), acceptors(running)
    body = json.dumps(ASK).encode()
    head = f"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {len(body)}\r\n\r\n"
    with context.wrap_socket(socket.create_connection((host, int(port)), timeout=60), server_hostname=host) as client:
        client.sendall(head.encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 100 ")  # it has been admitted
        running.process.terminate()
        running.wait_log("stopping")
        client.sendall(body)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert running.process.wait(timeout=60) == 0
    assert len(started) == 2 and not psutil.wait_procs(started, timeout=10)[1]
    assert not any("Traceback" in line for line in running.log)


def test_a_number_that_cannot_be_is_refused() -> None:
    from test_serving_endpoint import start

    done = start(WINNOW_ENDPOINT_ACCEPTORS="65")
    assert done.returncode == 2 and "WINNOW_ENDPOINT_ACCEPTORS is '65'; set it to 0 to 64" in done.stderr
