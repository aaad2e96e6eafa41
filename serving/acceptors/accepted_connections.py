"""The front's side of an acceptor: its clients' connections, as if they were the front's own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, cast

from serving.acceptors.acceptor_frames import Frame, LinkBroken, LinkReader, LinkWriter, Said

log = logging.getLogger("winnow.serving")


class AcceptorLink(asyncio.Protocol):
    """The link.

    Args:
        connect: makes the protocol of a client's connection.

    Attributes:
        ready: done once connections are taken.
    """

    def __init__(self, connect: Callable[[], asyncio.Protocol]) -> None:
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._connect = connect
        self._link, self._reader = LinkWriter(), LinkReader()
        self._clients: dict[int, AcceptedTransport] = {}
        self._transport: asyncio.Transport | None = None

    @property
    def connections(self) -> int:
        return len(self._clients)

    def stop(self) -> None:
        """Take no more connections; those that are there go on."""
        self._link.say(0, Said.STOP)

    def close(self) -> None:
        """End it, once all that was said is sent."""
        if self._transport is not None:
            asyncio.get_running_loop().call_soon(self._transport.close)

    # -- asyncio's callbacks --------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._link.begin(self._transport)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                self._hear(frame)
        except LinkBroken as error:
            log.error("an acceptor is given up: %s", error)
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        clients, self._clients = self._clients, {}
        for client in clients.values():
            client.lost()
        if not self.ready.done():
            self.ready.cancel()

    def pause_writing(self) -> None:
        for client in self._clients.values():
            client.pile(link=True)

    def resume_writing(self) -> None:
        for client in self._clients.values():
            client.pile(link=False)

    def _hear(self, frame: Frame) -> None:
        if frame.said == Said.DATA:
            if (client := self._clients.get(frame.number)) is not None:
                client.take(frame.data)
        elif frame.said == Said.OPEN:
            made = AcceptedTransport(self._link, frame.number, self._connect(), secure=bool(frame.data))
            self._clients[frame.number] = made
            made.protocol.connection_made(made)
        elif frame.said == Said.READY:
            if not self.ready.done():
                self.ready.set_result(None)
        elif (client := self._clients.get(frame.number)) is None:
            return
        elif frame.said == Said.END:
            client.end()
        elif frame.said == Said.LOST:
            del self._clients[frame.number]
            client.lost()
        elif frame.said in (Said.FULL, Said.DRAINED):
            client.pile(client=frame.said == Said.FULL)


class AcceptedTransport(asyncio.Transport):
    """What a connection of the front writes to, where an acceptor holds its socket."""

    __slots__ = ("_closing", "_full", "_link", "_number", "_secure", "protocol")

    def __init__(self, link: LinkWriter, number: int, protocol: asyncio.Protocol, *, secure: bool) -> None:
        super().__init__()
        self.protocol = protocol
        self._link, self._number, self._secure = link, number, secure
        self._closing = False
        self._full = {"client": False, "link": False}

    # -- what the acceptor says -----------------------------------------------------------------------------------
    def take(self, data: bytes) -> None:
        """Bytes of the client."""
        if not self._closing:
            self.protocol.data_received(data)

    def end(self) -> None:
        """The client sends no more."""
        if not self._closing and not (self.protocol.eof_received() and not self._secure):
            self.close()

    def lost(self) -> None:
        """The connection is gone."""
        self._closing = True
        self.protocol.connection_lost(None)

    def pile(self, **full: bool) -> None:
        """What is sent piles up at the ``client`` or on the ``link``, or no longer does."""
        before = any(self._full.values())
        self._full |= full
        if any(self._full.values()) is not before:
            (self.protocol.resume_writing if before else self.protocol.pause_writing)()

    # -- what the front's connection does -------------------------------------------------------------------------
    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closing:
            self._link.say(self._number, Said.DATA, bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return not self._secure

    def write_eof(self) -> None:
        self._link.say(self._number, Said.END)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._link.say(self._number, Said.CLOSE)

    def abort(self) -> None:
        self._closing = True
        self._link.say(self._number, Said.ABORT)

    def pause_reading(self) -> None:
        self._link.say(self._number, Said.PAUSE)

    def resume_reading(self) -> None:
        self._link.say(self._number, Said.RESUME)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default
