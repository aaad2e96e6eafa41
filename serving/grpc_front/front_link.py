"""The gRPC process as a client of the HTTP front: a connection for each call that is under way, kept for the next one.

Connections are socket pairs of which the front is sent one end, so that there is no port and no file which others could
open. ``http.client`` is left out: reading a head with it costs more than everything else here.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from typing import NamedTuple, cast

from serving.exceptions import InferenceTimedOut, InvalidRequest, NotReady


class FrontAnswer(NamedTuple):
    """An HTTP answer. ``json_bytes``: of the body's JSON part, -1 where all of it is JSON."""

    status: int
    body: bytes
    json_bytes: int


class _Closed(Exception):
    """The front closed the connection before it answered."""


class _Unanswered(_Closed):
    """No byte came back."""


class FrontLink:
    """Asks the front; of the event loop that it is used in.

    Args:
        control: see :mod:`serving.grpc_front.grpc_order`.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._idle: list[_Connection] = []

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        seconds: float,
        headers: Mapping[str, str] | None = None,
        json_bytes: int = -1,
    ) -> FrontAnswer:
        """The front's answer, whatever its status.

        Args:
            path: percent-encoded.
            seconds: how long to wait for it.
            headers: further ones.
            json_bytes: of the body's JSON part, behind which raw tensors follow; -1: all of it is JSON.

        Raises:
            InvalidRequest: one of them cannot be a header's value.
            InferenceTimedOut: none came in time.
            NotReady: the front takes no more requests.
        """
        request = b"".join((_head(method, path, len(body), headers or {}, json_bytes), body))
        try:
            async with asyncio.timeout(seconds):
                kept = self._kept()
                if kept is not None:
                    with contextlib.suppress(_Unanswered):  # closed as it was idle for too long, just now
                        return await self._exchange(kept, request)
                return await self._exchange(await self._connect(), request)
        except TimeoutError as error:
            raise InferenceTimedOut("there was no answer in time") from error
        except (_Closed, OSError) as error:
            raise NotReady("the endpoint is shutting down, or has no connection left; try again") from error

    def close(self) -> None:
        """Close what is kept."""
        while self._idle:
            self._idle.pop().close()

    def _kept(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        return None

    async def _connect(self) -> _Connection:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                ours.setblocking(False)
                socket.send_fds(self._control, [b'{"connect":true}'], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        _, connection = await asyncio.get_running_loop().create_unix_connection(_Connection, sock=ours)
        return connection

    async def _exchange(self, connection: _Connection, request: bytes) -> FrontAnswer:
        try:
            answer = await connection.exchange(request)
        except BaseException:  # the answer may still come, and would be taken for that of the next request
            connection.close()
            raise
        if connection.reusable:
            self._idle.append(connection)
        else:
            connection.close()
        return answer


class _Connection(asyncio.Protocol):
    """One request at a time.

    Attributes:
        reusable: whether the front keeps the connection after the latest answer.
    """

    def __init__(self) -> None:
        self.reusable = True
        self._transport: asyncio.Transport | None = None
        self._data = bytearray()
        self._head: tuple[int, int, int] | None = None
        """Status, bytes up to the end of the body, bytes of its JSON part."""
        self._start = 0
        self._answer: asyncio.Future[FrontAnswer] | None = None

    async def exchange(self, request: bytes) -> FrontAnswer:
        """Raises _Closed."""
        if self._transport is None or self._transport.is_closing():
            raise _Unanswered
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio's callbacks ------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        try:
            if self._head is None and not self._read_head():
                return
        except (ValueError, KeyError, IndexError):  # no answer that could be read, and none that may be asked for again
            self._fail(_Closed())
            self.close()
            return
        assert self._head is not None
        status, end, json_bytes = self._head
        if len(self._data) < end:
            return
        body = bytes(memoryview(self._data)[self._start : end])
        self._data, self._head = bytearray(), None
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(FrontAnswer(status, body, json_bytes))

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        self._fail(_Closed() if self._data else _Unanswered())

    def _fail(self, error: _Closed) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def _read_head(self) -> bool:
        """Whether it is there."""
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return False
        first, *lines = bytes(self._data[:end]).lower().split(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in lines)
        self._start = end + 4
        self.reusable = headers.get(b"connection") != b"close"
        json_bytes = int(headers.get(b"inference-header-content-length", -1))
        self._head = int(first.split(b" ", 2)[1]), self._start + int(headers[b"content-length"]), json_bytes
        return True


def _head(method: str, path: str, length: int, headers: Mapping[str, str], json_bytes: int) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: winnow", f"content-length: {length}"]
    for name, value in headers.items():
        if not (value.isascii() and value.isprintable()):  # it would end its line, and say more
            raise InvalidRequest(f"{name} must be printable ASCII")
        lines.append(f"{name}: {value}")
    if json_bytes >= 0:
        lines.append(f"inference-header-content-length: {json_bytes}")
    return "\r\n".join((*lines, "", "")).encode("ascii")
