"""HTTP connections over real sockets: what is bounded, what is refused, and that requests are answered in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.front.chunked_body import ChunkedBody, MalformedChunks
from serving.front.http_connection import HttpConnection
from serving.front.http_head import LONGEST_KEPT, ByteBudget, HeadTable, RequestHead
from serving.front.http_routes import RouteTable
from serving.front.http_service import RoutedService, tick_for_ever
from serving.front.request_reader import RequestReader, RequestRefused
from serving.limits import RequestLimits

LIMITS = RequestLimits(head_bytes=1000, headers=20, body_bytes=100_000, chunks=50, connections=20)
POST = b"POST /echo HTTP/1.1\r\nhost: a\r\n"


class Echo(RoutedService):
    """Answers with what it was sent; ``/slow`` after a moment."""

    def __init__(self, limits: RequestLimits) -> None:
        def echo(connection: HttpConnection, head: RequestHead, body: bytes) -> None:
            self.seen.append(body)
            connection.answer(200, body)

        async def slow(connection: HttpConnection, head: RequestHead, body: bytes) -> None:
            await asyncio.sleep(0.2)
            connection.answer(200, b"slow")

        def fails(connection: HttpConnection, head: RequestHead, body: bytes) -> None:
            raise KeyError("a fault of ours, with a secret in it")

        self.seen: list[bytes] = []
        plain: dict[str, dict[str, Any]] = {
            "/echo": {"POST": echo, "GET": echo},
            "/slow": {"GET": slow},
            "/fails": {"GET": fails},
        }
        super().__init__(RouteTable(plain, {}, root="v2"), limits)


class Client:
    """A socket, and a parser of what comes over it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, bytes, bytes]:
        """Status, head, body."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return int(head[9:12]), head, await asyncio.wait_for(self.reader.readexactly(length), 10)

    async def ended(self, seconds: float = 5) -> bool:
        """Whether the other side closes within that time."""
        try:
            return not await asyncio.wait_for(self.reader.read(), seconds)
        except TimeoutError:
            return False


Scene = Callable[[Echo, Callable[[], Coroutine[Any, Any, Client]]], Coroutine[Any, Any, None]]


def play(scene: Scene, limits: RequestLimits = LIMITS) -> None:
    async def whole() -> None:
        async with serving(limits) as (echo, connect):
            await scene(echo, connect)

    asyncio.run(whole())


@asynccontextmanager
async def serving(limits: RequestLimits) -> AsyncIterator[tuple[Echo, Any]]:
    echo, clients = Echo(limits), list[Client]()
    server = await asyncio.get_running_loop().create_server(echo.connect, "127.0.0.1", 0)
    ticks = asyncio.create_task(tick_for_ever(echo))

    async def connect() -> Client:
        clients.append(Client(*await asyncio.open_connection(*server.sockets[0].getsockname())))
        return clients[-1]

    try:
        yield echo, connect
    finally:
        server.close()
        ticks.cancel()
        for client in clients:
            client.writer.close()
            with suppress(OSError):
                await client.writer.wait_closed()
        for _ in range(100):
            if echo.connections:
                await asyncio.sleep(0.01)


def test_a_connection_is_used_again_and_again_in_any_pieces() -> None:
    async def scene(echo: Echo, connect: Any) -> None:
        client = await connect()
        request = POST + b"content-length: 5\r\n\r\nhello"
        for _ in range(3):
            client.send(request)
            assert (await client.answer())[::2] == (200, b"hello")
        assert len(echo.heads.heads) == 1, "the head is looked up from the second time on"
        for piece in range(0, len(request), 7):
            client.send(request[piece : piece + 7])
            await asyncio.sleep(0.001)
        assert (await client.answer())[::2] == (200, b"hello")

    play(scene)


def test_pipelined_requests_are_answered_in_order() -> None:
    async def scene(echo: Echo, connect: Any) -> None:
        client = await connect()
        numbers = [str(number).encode() for number in range(200)]
        slow = b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n"
        client.send(slow + b"".join(POST + b"content-length: %d\r\n\r\n%s" % (len(n), n) for n in numbers))
        client.send(POST + b"transfer-encoding: chunked\r\n\r\n3\r\nend\r\n0\r\n\r\n" + slow)
        found = [(await client.answer())[::2] for _ in range(203)]
        assert found == [(200, b"slow"), *((200, n) for n in numbers), (200, b"end"), (200, b"slow")]

    play(scene)


def test_who_has_sent_everything_still_gets_the_answer() -> None:
    async def scene(echo: Echo, connect: Any) -> None:
        client = await connect()
        client.send(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n")
        client.writer.write_eof()
        status, head, body = await client.answer()
        assert (status, body) == (200, b"slow")
        assert b"connection: close" in head
        assert await client.ended()

    play(scene)


def test_nobody_waits_behind_an_adopted_connection_that_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Echo, "connect", Echo.adopt)

    async def scene(echo: Echo, connect: Any) -> None:
        client = await connect()
        client.send(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n")
        while not any(connection._busy for connection in echo.connections):
            await asyncio.sleep(0.001)
        (connection,) = echo.connections
        client.writer.write_eof()
        assert await client.ended(0.15), "before there is an answer"
        assert connection.gone

    play(scene)


def test_http_1_0_and_connection_close_end_after_the_answer() -> None:
    async def scene(echo: Echo, connect: Any) -> None:
        for head in (b"GET /echo HTTP/1.0\r\n\r\n", b"GET /echo HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"):
            client = await connect()
            client.send(head)
            assert (await client.answer())[0] == 200
            assert await client.ended()
        client = await connect()
        client.send(2 * b"GET /echo HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
        for _ in range(2):
            status, head, _ = await client.answer()
            assert (status, b"connection: keep-alive" in head) == (200, True)

    play(scene)


def test_a_head_request_gets_the_head_alone() -> None:
    async def scene(echo: Echo, connect: Any) -> None:
        client = await connect()
        client.send(b"HEAD /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc")
        client.send(POST + b"content-length: 1\r\n\r\nx")
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert b"content-length: 3" in head
        assert (await client.answer())[::2] == (200, b"x")

    play(scene)


REFUSED: dict[str, tuple[bytes, int, bytes]] = {
    "endless head": (POST + b"x: " + b"y" * 2000, 431, b"longer than 1000 bytes"),
    "a long head in one piece": (POST + b"x: " + b"y" * 2000 + b"\r\n\r\n", 431, b"longer than 1000 bytes"),
    "many headers": (POST + b"".join(b"h%d: 1\r\n" % i for i in range(30)) + b"\r\n", 431, b"more than 20 headers"),
    "no host": (b"GET /echo HTTP/1.1\r\n\r\n", 400, b"Host"),
    "two hosts": (b"GET /echo HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400, b"given twice"),
    "length and chunks": (POST + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\nabc", 400, b"not valid HTTP"),
    "another coding": (POST + b"transfer-encoding: gzip, chunked\r\n\r\n", 501, b"chunked"),
    "a longer body than allowed": (POST + b"content-length: 100001\r\n\r\nx", 413, b"longer than 100000"),
    "a longer one in chunks": (POST + b"transfer-encoding: chunked\r\n\r\n186a1\r\nx", 413, b"longer than 100000"),
    "many chunks": (POST + b"transfer-encoding: chunked\r\n\r\n" + 60 * b"1\r\nx\r\n", 413, b"more than 50 chunks"),
    "a chunk without its end": (POST + b"transfer-encoding: chunked\r\n\r\n1\r\nxyz\r\n", 400, b"where its size says"),
    "a long size line": (POST + b"transfer-encoding: chunked\r\n\r\n1;" + b"a" * 300, 400, b"size line"),
    "a huge length": (POST + b"content-length: 9999999999999999999999\r\n\r\n", 400, b"not valid HTTP"),
    "bare line feeds in the head": (b"GET /echo HTTP/1.1\nhost: a\r\n\r\n", 400, b"not valid HTTP"),
    "a space in a name": (b"GET /echo HTTP/1.1\r\nhost : a\r\n\r\n", 400, b"not valid HTTP"),
    "a line that goes on": (b"GET /echo HTTP/1.1\r\nhost: a\r\n b\r\n\r\n", 400, b"not valid HTTP"),
    "an unknown expectation": (POST + b"expect: x\r\ncontent-length: 1\r\n\r\n", 417, b"100-continue"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_breaks_http_or_a_limit_is_refused_in_json_and_the_connection_closed(case: str) -> None:
    sent, status, text = REFUSED[case]

    async def scene(echo: Echo, connect: Any) -> None:
        client = await connect()
        client.send(sent)
        found, head, body = await client.answer()
        assert (found, body[:10]) == (status, b'{"error":"')
        assert text in body
        assert b"connection: close" in head
        assert await client.ended()
        assert echo.seen == []
        other = await connect()
        other.send(POST + b"content-length: 2\r\n\r\nok")
        assert (await other.answer())[0] == 200

    play(scene)


def test_a_refused_client_that_goes_on_sending_still_reads_why() -> None:
    async def scene(echo: Echo, connect: Any) -> None:
        client = await connect()
        client.send(POST + b"content-length: 10000000\r\n\r\n" + bytes(5_000_000))
        assert (await client.answer())[0] == 413
        assert await client.ended(), "in the end it is cut off"

    play(scene)


def test_continue_is_sent_only_where_the_body_is_wanted() -> None:
    async def scene(echo: Echo, connect: Any) -> None:
        client = await connect()
        client.send(POST + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"ok")
        assert (await client.answer())[::2] == (200, b"ok")
        client.send(b"POST /nowhere HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        assert (await client.answer())[0] == 404

    play(scene)


def test_a_fault_of_ours_is_answered_without_its_text() -> None:
    async def scene(echo: Echo, connect: Any) -> None:
        client = await connect()
        client.send(b"GET /fails HTTP/1.1\r\nhost: a\r\n\r\n")
        status, _, body = await client.answer()
        assert (status, b"secret" in body) == (500, False)

    play(scene)


QUICK = RequestLimits(head_seconds=0.5, body_seconds=0.5, idle_seconds=0.5)


@pytest.mark.parametrize(
    ("sent", "status"),
    [(b"", 0), (b"POST /echo", 408), (POST + b"content-length: 9\r\n\r\nabc", 408), (POST + b"\r\n", 200)],
)
def test_silent_connections_are_closed(sent: bytes, status: int) -> None:
    async def scene(echo: Echo, connect: Any) -> None:
        client, began = await connect(), time.monotonic()
        client.send(sent)
        if status:
            assert (await client.answer())[0] == status
        assert await client.ended()
        while echo.connections:
            assert time.monotonic() - began < 6
            await asyncio.sleep(0.05)

    play(scene, QUICK)


def test_a_dripping_client_has_no_more_time_than_a_silent_one() -> None:
    async def scene(echo: Echo, connect: Any) -> None:
        for start in (b"GET /echo HTTP/1.1\r\n", POST + b"content-length: 1000\r\n\r\n"):
            client, began = await connect(), time.monotonic()
            client.send(start)
            while not client.reader.at_eof() and not client.reader._buffer:
                client.send(b"a")
                await asyncio.sleep(0.05)
                assert time.monotonic() - began < 4
            assert (await client.answer())[0] == 408

    play(scene, QUICK)


def test_more_connections_than_allowed_are_turned_away_and_told_so() -> None:
    async def scene(echo: Echo, connect: Any) -> None:
        many = [await connect() for _ in range(LIMITS.connections + 5)]
        await asyncio.sleep(0.1)
        refused = [client for client in many if client.reader._buffer]
        assert len(refused) == 5 and echo.shed == {"connections": 5}
        status, head, _ = await refused[0].answer()
        assert (status, b"retry-after: 1" in head) == (503, True)
        many[0].send(POST + b"content-length: 2\r\n\r\nok")
        assert (await many[0].answer())[0] == 200

    play(scene)


def test_bodies_that_arrive_at_a_time_are_bounded_and_what_was_reserved_comes_back() -> None:
    limits = RequestLimits(arriving_bytes=150_000, body_bytes=100_000)
    begun = POST + b"content-length: 100000\r\n\r\nx"

    async def scene(echo: Echo, connect: Any) -> None:
        first, second, third = [await connect() for _ in range(3)]
        first.send(begun)
        await asyncio.sleep(0.05)
        second.send(begun)
        assert (await second.answer())[0] == 503
        first.send(bytes(99_999))
        assert (await first.answer())[0] == 200
        for client in (first, third):  # what a client leaves behind comes back too
            client.send(begun)
            await asyncio.sleep(0.05)
            client.writer.close()
            await asyncio.sleep(0.05)
        last = await connect()
        last.send(begun + bytes(99_999))
        assert (await last.answer())[0] == 200
        assert echo.shed == {"bodies": 1}

    play(scene, limits)


def test_a_client_that_reads_nothing_is_waited_for_and_then_cut_off() -> None:
    async def scene(echo: Echo, connect: Any) -> None:
        client = await connect()
        client.writer.transport.pause_reading()
        request = POST + b"content-length: 90000\r\n\r\n" + bytes(90_000)
        client.send(200 * request)
        await asyncio.sleep(0.3)
        assert len(echo.seen) < 150, "answers that are not read are not piled up"
        end = time.monotonic() + 5
        while echo.connections and time.monotonic() < end:
            await asyncio.sleep(0.05)
        assert not echo.connections

    play(scene, QUICK)


# -- properties -------------------------------------------------------------------------------------------------
def reader(heads: HeadTable | None = None) -> RequestReader:
    return RequestReader(heads or HeadTable(), LIMITS, lambda head: None, lambda: None, ByteBudget(1 << 20))


@settings(max_examples=300)
@given(st.binary(max_size=300), st.integers(0, 200), st.integers(0, 255), st.integers(1, 50))
def test_any_bytes_are_read_or_refused_and_nothing_else(data: bytes, place: int, byte: int, step: int) -> None:
    good = bytearray(
        POST + b"content-length: 3\r\n\r\nabc" + POST + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    )
    good[place % len(good)] = byte
    for sent in (data, bytes(good)):
        made = reader()
        try:
            for at in range(0, len(sent), step):
                piece = sent[at : at + step]
                while piece:
                    arrived = made.feed(piece)
                    piece, made.rest = (made.rest, b"") if arrived is not None else (b"", b"")
        except RequestRefused as refused:
            assert 400 <= refused.status < 600


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(1, 30), st.binary(max_size=10))
def test_chunks_are_put_together_whatever_the_pieces(parts: list[bytes], step: int, behind: bytes) -> None:
    sent = b"".join(b"%x;a=1\r\n%s\r\n" % (len(part), part) for part in parts if part) + b"0\r\ntrailer: x\r\n\r\n"
    body = ChunkedBody(LIMITS)
    rest, at = None, 0
    while rest is None:
        rest = body.feed((sent + behind)[at : at + step])
        at += step
    assert body.body == b"".join(parts)
    assert (sent + behind)[: at - len(rest)] == sent or (sent + behind).startswith(sent)
    assert len(rest) == max(0, min(at, len(sent + behind)) - len(sent))


@given(st.binary(max_size=60))
def test_malformed_chunks_are_named(data: bytes) -> None:
    try:
        ChunkedBody(LIMITS).feed(data)
    except MalformedChunks as error:
        assert error.status in (400, 413)


class Parsed:
    """What llhttp makes of a head."""

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.url = b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value


@given(st.dictionaries(st.sampled_from(["x", "accept", "content-type"]), st.text("abc/;, ", max_size=9), max_size=3))
def test_a_head_from_the_table_means_what_llhttp_says(more: dict[str, str]) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in more.items()).encode()
    sent, heads = POST + lines + b"content-length: 2\r\n\r\nok", HeadTable()
    found = [reader(heads).feed(sent) for _ in range(2)]
    assert len(heads.heads) == 1
    parsed = Parsed()
    httptools.HttpRequestParser(parsed).feed_data(sent)
    for arrived in found:
        assert arrived is not None
        assert (arrived[0].path, arrived[0].headers, arrived[1]) == (parsed.url, parsed.headers, b"ok")


def test_the_table_keeps_only_what_can_be_taken_without_looking() -> None:
    heads = HeadTable()
    for more in (
        b"transfer-encoding: chunked\r\n",
        b"expect: 100-continue\r\ncontent-length: 0\r\n",
        b"x: " + b"y" * 900,
    ):
        read_one = reader(heads)
        try:
            read_one.feed(POST + more + b"\r\n\r\n0\r\n\r\n")
        except RequestRefused:
            continue
    assert all(len(raw) <= LONGEST_KEPT and head.length is not None for raw, head in heads.heads.items())
    assert not any(head.expects for head in heads.heads.values())
    for number in range(10_000):
        reader(heads).feed(b"GET /%d HTTP/1.1\r\nhost: a\r\n\r\n" % number)
    assert len(heads.heads) <= 4096
