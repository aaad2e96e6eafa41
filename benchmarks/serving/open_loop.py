"""Requests that are sent when they are due, whether or not earlier ones were answered; and the usual closed loop.

A client that waits for an answer before it sends again asks a slow server less often, and so leaves out of its
statistics what it should measure ("coordinated omission"). Here the time of a request counts from when it was due, a
wait for a free connection included.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

LOST = 0
"""Status of a request without an answer: its connection ended, or it waited longer than anybody would."""
_PATIENCE_SECONDS = 20.0
_LONGEST_SLEEP = 0.002


class Shot(NamedTuple):
    """A request: its place in the order of sending; when it was due, by the monotonic clock; seconds from then to the
    answer's last byte; the answer's status, head and body."""

    number: int
    due: float
    seconds: float
    status: int
    head: bytes = b""
    body: bytes = b""

    @property
    def ended(self) -> float:
        return self.due + self.seconds


class _Asked(NamedTuple):
    number: int
    due: float
    request: bytes
    done: Callable[[Shot], None]


class LoadClient:
    """Sends requests to a port on loopback, in turns those that it was given.

    Args:
        most: connections open at a time; a request that finds none free waits for one, which counts.
        keep: whether heads and bodies of answers are kept.
    """

    def __init__(self, port: int, requests: Sequence[bytes], *, most: int = 2048, keep: bool = False) -> None:
        self._port, self._most, self.keep = port, most, keep
        self._next = itertools.cycle(requests)
        self._numbers = itertools.count()
        self._waiting = deque[_Asked]()
        self._idle, self._open, self._opening = list[_Connection](), set[_Connection](), 0
        self._tasks = set[asyncio.Task[None]]()
        self._loop = asyncio.get_running_loop()

    async def open_loop(
        self, rate: float, seconds: float = math.inf, *, until: Callable[[], bool] = lambda: False
    ) -> list[Shot]:
        """``rate`` requests a second for that time, or until so, evenly; returns when all are answered or given up."""
        shots, began, fired = list[Shot](), time.monotonic(), 0
        while fired < rate * seconds and not until():
            now = time.monotonic()
            while fired < rate * seconds and (due := began + fired / rate) <= now:
                self._ask(due, shots.append)
                fired += 1
            await asyncio.sleep(max(0.0, min(_LONGEST_SLEEP, began + fired / rate - time.monotonic())))
        end = time.monotonic() + _PATIENCE_SECONDS
        while len(shots) < fired and time.monotonic() < end:
            await asyncio.sleep(0.005)
        self.close()
        while len(shots) < fired:
            await asyncio.sleep(0.005)
        return shots

    async def closed_loop(self, connections: int, seconds: float, *, most: int = sys.maxsize) -> list[Shot]:
        """Each connection sends again as soon as it was answered, for that time or ``most`` requests or a few more."""
        shots, end = list[Shot](), time.monotonic() + seconds
        finished = self._loop.create_future()
        left = connections

        def again(shot: Shot) -> None:
            nonlocal left
            shots.append(shot)
            if time.monotonic() < end and len(shots) < most:
                self._ask(time.monotonic(), again)
                return
            left -= 1
            if not left:
                finished.set_result(None)

        for _ in range(connections):
            self._ask(time.monotonic(), again)
        await finished
        return shots

    def close(self) -> None:
        """End all connections; what was not answered is lost."""
        while self._waiting:
            self._lose(self._waiting.popleft())
        for connection in list(self._open):
            connection.abort()

    # -- connections ------------------------------------------------------------------------------------------------
    def _ask(self, due: float, done: Callable[[Shot], None]) -> None:
        self._waiting.append(_Asked(next(self._numbers), due, next(self._next), done))
        self._turn()

    def _turn(self) -> None:
        while self._waiting and self._idle:
            self._idle.pop().send(self._waiting.popleft())
        if len(self._waiting) > self._opening and len(self._open) + self._opening < self._most:
            self._opening += 1
            task = self._loop.create_task(self._connect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        try:
            await self._loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._port)
        except OSError:  # refused: whoever waits the longest is told so
            if self._waiting:
                self._lose(self._waiting.popleft())
        finally:
            self._opening -= 1
        self._turn()

    def _lose(self, asked: _Asked) -> None:
        asked.done(Shot(asked.number, asked.due, time.monotonic() - asked.due, LOST))

    # -- what connections say -----------------------------------------------------------------------------------
    def came(self, connection: _Connection) -> None:
        self._open.add(connection)
        self.free(connection)

    def free(self, connection: _Connection) -> None:
        self._idle.append(connection)
        self._turn()

    def went(self, connection: _Connection, asked: _Asked | None) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if asked is not None:
            self._lose(asked)
        if self._waiting:
            self._turn()

    def answered(self, asked: _Asked, status: int, head: bytes, body: bytes) -> None:
        seconds = time.monotonic() - asked.due
        kept = (head, body) if self.keep else (b"", b"")
        asked.done(Shot(asked.number, asked.due, seconds, status, *kept))


class _Connection(asyncio.Protocol):
    """One request at a time; reads no more of HTTP than our endpoint sends."""

    def __init__(self, client: LoadClient) -> None:
        self._client, self._asked, self._buffer = client, cast("_Asked | None", None), b""
        self._transport = cast(Any, None)

    def send(self, asked: _Asked) -> None:
        self._asked = asked
        self._transport.write(asked.request)

    def abort(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._client.came(self)

    def connection_lost(self, exc: Exception | None) -> None:
        asked, self._asked = self._asked, None
        self._client.went(self, asked)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        head = self._buffer[:end]
        at = head.index(b"content-length: ") + 16
        length = int(head[at : head.index(b"\r", at)])
        if len(self._buffer) < end + length or self._asked is None:
            return
        body, self._buffer = self._buffer[end : end + length], self._buffer[end + length :]
        asked, self._asked = self._asked, None
        closing = b"connection: close" in head
        if closing:
            self._transport.close()
        self._client.answered(asked, int(head[9:12]), head, body)
        if not closing:
            self._client.free(self)


def http_request(path: str, body: bytes, *, json_bytes: int = -1, **headers: str) -> bytes:
    """A whole request; ``json_bytes`` come before its binary tensors, -1: all is JSON; ``_`` in headers is ``-``."""
    lines = [f"POST {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}"]
    if json_bytes >= 0:
        lines.append(f"inference-header-content-length: {json_bytes}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join((*lines, "", "")).encode() + body


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share lies (nearest rank); NaN of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
