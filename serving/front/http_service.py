"""What both listeners share: their connections, one timer for all deadlines, and errors as ``{"error": text}``."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from typing import Any

import orjson

from serving.exceptions import ServingError, TooManyRequests
from serving.front.http_connection import HttpConnection, error_body
from serving.front.http_head import ByteBudget, HeadTable, RequestHead
from serving.front.http_routes import Route, RouteTable
from serving.limits import RequestLimits
from serving.telemetry.request_notes import RequestNotes
from serving.telemetry.request_watch import RequestWatch

_TICK = 0.5
log = logging.getLogger("winnow.serving")


class RoutedService:
    """Answers the requests of a listener by its routes.

    Attributes:
        heads: of requests that were taken before; emptied when what they mean may have changed.
        arriving: bytes of bodies that are.
        connections: that are open.
        now: the monotonic clock at the last tick.
        shed: see :class:`serving.front.http_connection.HttpService`.
        draining: no connection is kept after its answer.
        watch: who wants to know of every request; None: nobody.
    """

    def __init__(self, routes: RouteTable, limits: RequestLimits) -> None:
        self.routes, self.limits = routes, limits
        self.heads = HeadTable()
        self.arriving = ByteBudget(limits.arriving_bytes)
        self.connections = set[HttpConnection]()
        self.now = time.monotonic()
        self.shed = Counter[str]()
        self.draining = False
        self.watch: RequestWatch | None = None
        self._tasks = set[asyncio.Task[None]]()

    def connect(self) -> HttpConnection:
        """A protocol for a new connection."""
        return HttpConnection(self)

    def adopt(self) -> HttpConnection:
        """The protocol of a connection of the gRPC process, which closes it when its caller has given up."""
        return HttpConnection(self, half_closes=False)

    def tick(self) -> None:
        """Check every connection's deadlines; called twice a second."""
        self.now = time.monotonic()
        for connection in list(self.connections):
            connection.check(self.now)

    def admit(self, head: RequestHead) -> None:
        """Find its route, before its body is read."""
        try:
            found = self.routes.find(head)
        except ServingError as error:
            head.refusal = (error.status, str(error), lines_of(error))
            return
        if isinstance(found, tuple):
            head.refusal = found
            return
        head.route = found
        try:
            self.permit(head, found)
        except ServingError as error:
            head.refusal = (error.status, str(error), lines_of(error))

    def permit(self, head: RequestHead, route: Route) -> None:
        """Look closer at a head before its body is read; raises ServingError where it is refused."""

    def handle(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        """Hand the request to its route's handler; one that waits for something goes on by itself."""
        try:
            waits = head.route.handler(connection, head, body)
        except ServingError as error:
            refuse(connection, error, self.text_of(error))
        except Exception:  # noqa: BLE001 - whatever it is, the client is answered and the log says it
            _unexpected(connection, head)
        else:
            if waits is not None:
                task = asyncio.create_task(self._wait(waits, connection, head))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def text_of(self, error: ServingError) -> str:
        """What is said of an error."""
        return str(error)

    async def _wait(self, waits: Any, connection: HttpConnection, head: RequestHead) -> None:
        try:
            await waits
        except ServingError as error:
            refuse(connection, error, self.text_of(error))
        except Exception:  # noqa: BLE001 - as above
            _unexpected(connection, head)

    async def drain(self, seconds: float) -> None:
        """Let requests in flight be answered; what is still open then is closed."""
        self.draining = True
        end = time.monotonic() + seconds
        for connection in list(self.connections):
            connection.check(self.now)
        while self.connections and time.monotonic() < end:
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            connection.close()


def refuse(connection: HttpConnection, error: ServingError, text: str = "") -> None:
    """Answer with the error."""
    connection.answer(error.status, error_body(text or str(error)), lines_of(error))


def lines_of(error: ServingError) -> bytes:
    """Header lines that go with a refusal."""
    if isinstance(error, TooManyRequests):
        return b"retry-after: %d\r\n" % math.ceil(error.retry_after)
    return lines_of_status(error.status)


def lines_of_status(status: int) -> bytes:
    """The same where only the status is known."""
    if status == 503:
        return b"retry-after: 1\r\n"
    return b"www-authenticate: Bearer\r\n" if status == 401 else b""


def reply(connection: HttpConnection, value: Any) -> None:
    """Answer with a value as JSON."""
    connection.answer(200, orjson.dumps(value))


def _unexpected(connection: HttpConnection, head: RequestHead) -> None:
    connection.notes = notes = connection.notes or RequestNotes(head, None)  # the answer says under which id to look
    what, where, request = head.method.decode(), ascii(head.path.decode("latin-1")), notes.id.decode()
    log.exception(
        "a fault of the endpoint's own on %s %s, request %s", what, where, request, extra={"request": request}
    )
    connection.answer(500, error_body("internal error; the endpoint's log says more"))


async def tick_for_ever(*services: RoutedService) -> None:
    """The timer of all deadlines."""
    while True:
        await asyncio.sleep(_TICK)
        for service in services:
            service.tick()
