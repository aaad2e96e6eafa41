"""One HTTP/1.1 connection: bounded in time and in what waits; answers in the order of the requests.

An ``asyncio.Protocol`` on llhttp (httptools). ASGI is left out on purpose: its scopes, tasks and queues cost more than
everything else that the front does for a small request.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol, cast

import orjson

from serving.front.http_head import ByteBudget, HeadTable, RequestHead
from serving.front.http_stream import StreamedAnswers
from serving.front.request_reader import RequestReader, RequestRefused
from serving.telemetry.request_notes import LEFT, RequestNotes, notes_of

if TYPE_CHECKING:
    from serving.limits import RequestLimits
    from serving.telemetry.request_watch import RequestWatch

_OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_LINGER_SECONDS = 2.0
"""How long a client that is refused may go on sending before the connection is cut."""


class HttpService(Protocol):
    """Who answers the requests of a listener's connections.

    Attributes:
        heads: of requests that were taken before.
        arriving: bytes of bodies that are.
        now: the monotonic clock, about, for deadlines.
        shed: connections and requests that were turned away because there were too many, by reason.
        draining: no connection is kept after its answer.
        watch: who wants to know of every request; None: nobody.
    """

    heads: HeadTable
    arriving: ByteBudget
    limits: RequestLimits
    connections: set[HttpConnection]
    now: float
    shed: Counter[str]
    draining: bool
    watch: RequestWatch | None

    def admit(self, head: RequestHead) -> None:
        """Set the head's ``route``, or its ``refusal``, before its body is read."""

    def handle(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        """Answer by ``connection.answer``, once, now or later."""


class HttpConnection(StreamedAnswers, asyncio.Protocol):
    """A client's connection to a service.

    Args:
        half_closes: whether the client may have sent all it wants and still wait for its answer.

    Attributes:
        gone: whether nobody waits for an answer any more.
        notes: of the request that is being answered; None where nobody will read them.
    """

    __slots__ = ("_half_closes", "_lingering", "_reader", "_reading_paused", "_rest", "_writing_paused")

    def __init__(self, service: HttpService, *, half_closes: bool = True) -> None:
        self.service, self._half_closes = service, half_closes
        self._transport: asyncio.Transport | None = None
        self._reader = RequestReader(
            service.heads,
            service.limits,
            service.admit,
            go_on=lambda: None if self._transport is None else self._transport.write(_CONTINUE),
            budget=service.arriving,
        )
        self._head: RequestHead | None = None
        """Of the request that is being answered."""
        self._rest = b""
        """What came behind it."""
        self.gone = False
        self.notes: RequestNotes | None = None
        self._busy = self._lingering = False
        self._chunked = self._kept = False
        self._half_closed = self._reading_paused = self._writing_paused = False
        self._since = 0.0
        """When the connection last got on: what its deadlines count from."""

    # -- asyncio's callbacks ------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._since = self.service.now
        self.service.connections.add(self)
        if len(self.service.connections) > self.service.limits.connections:
            self.service.shed["connections"] += 1
            self._refuse(503, "too many connections are open; try again later", b"retry-after: 1\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        self.service.connections.discard(self)
        self.gone = True
        if self.notes is not None:
            self.notes.end(LEFT, self.service.watch)
            self.notes = None
        self._reader.stop()

    def eof_received(self) -> bool:
        self._half_closed = True
        return self._busy and self._half_closes

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._go_on()

    def data_received(self, data: bytes) -> None:
        if self._busy or self._writing_paused or self._rest:
            self._rest += data
            if len(self._rest) > self.service.limits.head_bytes:
                self._let_read(False)
        elif not self._lingering:
            self._feed(data)

    # -- requests -----------------------------------------------------------------------------------------------
    def _feed(self, data: bytes) -> None:
        reader = self._reader
        before = reader.within
        try:
            arrived = reader.feed(data)
        except RequestRefused as refused:
            if refused.status == 503:
                self.service.shed["bodies"] += 1
            self._refuse(refused.status, str(refused), refused.lines)
            return
        if arrived is None:
            if reader.within != before:
                self._since = self.service.now
            return
        head, body = arrived
        self._rest, reader.rest = reader.rest, b""
        self._busy, self._head, self._since = True, head, self.service.now
        self.notes = notes_of(head, reader.marks, self.service.watch)
        if head.refusal is None:
            self.service.handle(self, head, body)
        else:
            status, text, lines = head.refusal
            self.answer(status, error_body(text), lines)

    # -- answering ----------------------------------------------------------------------------------------------
    def answer(self, status: int, body: bytes, lines: bytes = b"", content_type: bytes = b"application/json") -> None:
        """Answer the request that the service was handed.

        Args:
            lines: further header lines, each with its CRLF.
        """
        if self.gone or self._transport is None:
            return
        if self.notes is not None:
            lines += self.notes.end(status, self.service.watch)
            self.notes = None
        head = self._head
        keep = head is not None and head.keep and not self.service.draining and not self._half_closed
        sends_body = head is None or head.method != b"HEAD"
        old = head is not None and head.old
        if status == 200 and keep and sends_body and not (lines or old) and content_type == b"application/json":
            self._transport.write(_OK % len(body) + body)
        else:
            first = b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n%s%s\r\n" % (
                status,
                _REASONS.get(status, b"Unknown"),
                content_type,
                len(body),
                lines,
                (b"connection: keep-alive\r\n" if old else b"") if keep else b"connection: close\r\n",
            )
            self._transport.writelines([first, body] if sends_body else [first])
        self._over(keep=keep)

    def _refuse(self, status: int, text: str, lines: bytes = b"") -> None:
        """Answer what cannot be read to its end, and close."""
        self._head, self.notes = None, notes_of(None, self._reader.marks, self.service.watch)
        self.answer(status, error_body(text), lines)

    def _end(self) -> None:
        """Close, but let a client that still sends read its answer: closing at once would reset the connection."""
        assert self._transport is not None
        self._rest = b""
        if self._transport.can_write_eof() and not self._half_closed:
            self._lingering, self._since = True, self.service.now
            self._transport.write_eof()
            self._let_read(True)
        else:
            self.close()

    def _go_on(self, now: bool = False) -> None:
        """The next request, if it is there already."""
        if self._busy or self.gone or self._lingering or self._writing_paused:
            return
        if self._rest and not now:
            # Not at once: a client with a thousand requests in one packet shares the loop with the others.
            asyncio.get_running_loop().call_soon(self._go_on, True)
            return
        data, self._rest = self._rest, b""
        if data:
            self._feed(data)
        if not self._busy and not self._rest:
            self._let_read(True)

    # -- deadlines ----------------------------------------------------------------------------------------------
    def check(self, now: float) -> None:
        """Called twice a second for every connection: one timer for all of them."""
        waited, limits, within = now - self._since, self.service.limits, self._reader.within
        if self.gone:  # closed, but TLS waits for the client's goodbye, which most clients never send
            if self.service.draining and waited > _LINGER_SECONDS:
                self.close(at_once=True)
        elif self._lingering:
            if waited > _LINGER_SECONDS:
                self.close(at_once=True)
        elif self._writing_paused:
            if waited > limits.body_seconds:  # a client that does not read its answer
                self.close(at_once=True)
        elif self._busy:
            return
        elif within == "body":
            if waited > limits.body_seconds:
                self._refuse(408, f"the body did not arrive within {limits.body_seconds:g} s; send it again")
        elif within == "head":
            if waited > limits.head_seconds:
                self._refuse(408, f"the request's head did not arrive within {limits.head_seconds:g} s")
        elif waited > limits.idle_seconds or self.service.draining:
            self.close()

    def close(self, *, at_once: bool = False) -> None:
        """Close, mostly after what was written has been sent."""
        if not self.gone:
            self.gone, self._since = True, self.service.now
        if self._transport is not None:
            (self._transport.abort if at_once else self._transport.close)()

    def _let_read(self, wanted: bool) -> None:
        if self._transport is None or self.gone or self._reading_paused is not wanted:
            return
        self._reading_paused = not wanted
        (self._transport.resume_reading if wanted else self._transport.pause_reading)()


def error_body(text: str) -> bytes:
    """The body of every answer that is a refusal."""
    return orjson.dumps({"error": text})
