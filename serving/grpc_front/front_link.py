"""The gRPC process as a client of the HTTP front: a connection per thread, kept open.

Connections are socket pairs of which the front is sent one end, so that there is no port and no file which others could
open. ``http.client`` is left out: reading a head with it costs more than everything else here.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Mapping
from typing import NamedTuple

from serving.exceptions import InferenceTimedOut, InvalidRequest, NotReady

_BUFFER_BYTES = 1 << 18


class FrontAnswer(NamedTuple):
    """An HTTP answer. ``json_bytes``: of the body's JSON part, -1 where all of it is JSON."""

    status: int
    body: bytes
    json_bytes: int


class _Closed(Exception):
    """The front closed the connection before it answered."""


class FrontLink:
    """Asks the front; used by any number of threads.

    Args:
        control: see :mod:`serving.grpc_front.grpc_order`.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._of_thread = threading.local()

    def ask(
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
        kept: socket.socket | None = getattr(self._of_thread, "connection", None)
        try:
            if kept is not None:
                with contextlib.suppress(_Closed):  # it was idle for too long; nothing of the request was looked at
                    return self._exchange(kept, request, seconds)
            return self._exchange(self._connect(), request, seconds)
        except TimeoutError as error:
            self.close()  # the answer may still come, and would be taken for that of the next request
            raise InferenceTimedOut("there was no answer in time") from error
        except (_Closed, OSError) as error:
            self.close()
            raise NotReady("the endpoint is shutting down, or has no connection left; try again") from error

    def _connect(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                socket.send_fds(self._control, [b'{"connect":true}'], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        self.close()
        self._of_thread.connection = ours
        return ours

    def close(self) -> None:
        """Close the calling thread's connection; the next request makes another one."""
        connection: socket.socket | None = self._of_thread.__dict__.pop("connection", None)
        if connection is not None:
            connection.close()

    def _exchange(self, connection: socket.socket, request: bytes, seconds: float) -> FrontAnswer:
        connection.settimeout(seconds)
        with contextlib.suppress(ConnectionError):  # refused by its head: the answer is there all the same
            connection.sendall(request)
        data = bytearray()
        while (end := data.find(b"\r\n\r\n")) < 0:
            _receive(connection, data)
        first, *lines = bytes(data[:end]).lower().split(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in lines)
        start, length = end + 4, int(headers[b"content-length"])
        while len(data) < start + length:
            _receive(connection, data)
        if headers.get(b"connection") == b"close":
            self.close()
        json_bytes = int(headers.get(b"inference-header-content-length", -1))
        return FrontAnswer(int(first.split(b" ", 2)[1]), bytes(data[start:]), json_bytes)


def _head(method: str, path: str, length: int, headers: Mapping[str, str], json_bytes: int) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: winnow", f"content-length: {length}"]
    for name, value in headers.items():
        if not (value.isascii() and value.isprintable()):  # it would end its line, and say more
            raise InvalidRequest(f"{name} must be printable ASCII")
        lines.append(f"{name}: {value}")
    if json_bytes >= 0:
        lines.append(f"inference-header-content-length: {json_bytes}")
    return "\r\n".join((*lines, "", "")).encode("ascii")


def _receive(connection: socket.socket, data: bytearray) -> None:
    try:
        more = connection.recv(_BUFFER_BYTES)
    except ConnectionError as error:
        raise _Closed from error
    if not more:
        raise _Closed
    data += more
