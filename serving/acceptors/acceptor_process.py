"""A process that takes clients' connections and hands their bytes to the front: ``python -m
serving.acceptors.acceptor_process DESCRIPTOR [CERTIFICATE KEY [AUTHORITIES]]``.

It knows no request, key or model, so there is nothing in it that could be asked for. The descriptor is its end of the
link; the listening socket comes over that first. Several of them share the socket: the kernel gives each connection to
one that waits. It ends with the link, and with it all its connections.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from pathlib import Path
from typing import cast

from serving.acceptors.acceptor_frames import Frame, LinkBroken, LinkReader, LinkWriter, Said
from serving.event_loop import listen, loop_factory
from serving.telemetry.log_lines import configure_log
from serving.tls import Tls

_RELOAD_SECONDS = 0.5
_GOODBYE_SECONDS = 2.0
"""How long clients' last bytes may take once the front is gone."""


class Acceptor(asyncio.Protocol):
    """The link to the front, and the clients by their numbers."""

    def __init__(self, secure: bool) -> None:
        self.link, self.secure = LinkWriter(), secure
        self.clients: dict[int, HeldClient] = {}
        self.full = False
        """Whether the front takes no more for now."""
        self.listener: asyncio.Server | None = None
        self.ended = asyncio.get_running_loop().create_future()
        self._reader, self._last = LinkReader(), 0

    def new_number(self) -> int:
        """For one more client."""
        while True:
            self._last = (self._last + 1) & 0xFFFFFFFF
            if self._last and self._last not in self.clients:
                return self._last

    # -- asyncio's callbacks --------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.link.begin(cast(asyncio.Transport, transport))

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                self._hear(frame)
        except LinkBroken:
            self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def pause_writing(self) -> None:
        self.full = True
        for client in self.clients.values():
            client.let_read()

    def resume_writing(self) -> None:
        self.full = False
        for client in self.clients.values():
            client.let_read()

    def _hear(self, frame: Frame) -> None:
        if frame.said == Said.STOP:
            if self.listener is not None:
                self.listener.close()
            return
        client = self.clients.get(frame.number)
        if client is not None:  # else it left while this was on its way
            client.hear(frame)


class HeldClient(asyncio.Protocol):
    """A client's connection."""

    __slots__ = ("_acceptor", "_number", "_paused", "_transport", "_wanted")

    def __init__(self, acceptor: Acceptor) -> None:
        self._acceptor, self._number = acceptor, acceptor.new_number()
        self._transport: asyncio.Transport | None = None
        self._wanted, self._paused = True, False
        """Whether the front wants to hear of it, and whether nothing is read."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._acceptor.clients[self._number] = self
        self._acceptor.link.say(self._number, Said.OPEN, b"\x01" if self._acceptor.secure else b"")
        self.let_read()

    def data_received(self, data: bytes) -> None:
        self._acceptor.link.say(self._number, Said.DATA, data)

    def eof_received(self) -> bool:
        self._acceptor.link.say(self._number, Said.END)
        return not self._acceptor.secure  # TLS knows no half of a connection; else the front decides

    def connection_lost(self, exc: Exception | None) -> None:
        if self._acceptor.clients.pop(self._number, None) is not None:
            self._acceptor.link.say(self._number, Said.LOST)

    def pause_writing(self) -> None:
        self._acceptor.link.say(self._number, Said.FULL)

    def resume_writing(self) -> None:
        self._acceptor.link.say(self._number, Said.DRAINED)

    def hear(self, frame: Frame) -> None:
        """What the front says of it."""
        transport = self._transport
        assert transport is not None
        match frame.said:
            case Said.DATA:
                transport.write(frame.data)
            case Said.PAUSE | Said.RESUME:
                self._wanted = frame.said == Said.RESUME
                self.let_read()
            case Said.END:
                transport.write_eof()  # never over TLS, as the front knows
            case Said.CLOSE:
                transport.close()
            case Said.ABORT:
                transport.abort()

    def let_read(self) -> None:
        """Read while the front wants it and has room."""
        pause = self._acceptor.full or not self._wanted
        if self._transport is None or pause is self._paused or self._transport.is_closing():
            return
        self._paused = pause
        (self._transport.pause_reading if pause else self._transport.resume_reading)()


async def accept(link: socket.socket, files: list[Path]) -> None:
    """Take connections until the front is gone."""
    _, descriptors, _, _ = await asyncio.to_thread(socket.recv_fds, link, 1, 1)
    if not descriptors:  # the front is gone already
        return
    listening = socket.socket(fileno=descriptors[0])
    for end in (link, listening):
        end.setblocking(False)
    tls = Tls(*files) if files else None
    loop = asyncio.get_running_loop()
    _, acceptor = await loop.connect_accepted_socket(lambda: Acceptor(tls is not None), link)
    acceptor.listener = await listen(lambda: HeldClient(acceptor), listening, tls)
    acceptor.link.say(0, Said.READY)
    while not acceptor.ended.done():
        await asyncio.wait([acceptor.ended], timeout=_RELOAD_SECONDS)
        if tls is not None:
            tls.reload()
    acceptor.listener.close()
    for client in list(acceptor.clients.values()):
        client.hear(Frame(0, Said.CLOSE, b""))
    until = loop.time() + _GOODBYE_SECONDS
    while acceptor.clients and loop.time() < until:
        await asyncio.sleep(0.01)


def main() -> None:
    """The process."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the front ends us when it has drained
    configure_log()
    descriptor, *files = sys.argv[1:]
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(accept(socket.socket(fileno=int(descriptor)), [Path(file) for file in files]))


if __name__ == "__main__":
    main()
