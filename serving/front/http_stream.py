"""Answers whose end is not known when they begin: sent piece by piece, in chunks where the client knows them."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import TYPE_CHECKING

from serving.telemetry.request_notes import RequestNotes

if TYPE_CHECKING:
    from serving.front.http_connection import HttpService
    from serving.front.http_head import RequestHead


class StreamedAnswers:
    """The part of a connection that sends them."""

    __slots__ = (
        "_busy",
        "_chunked",
        "_half_closed",
        "_head",
        "_kept",
        "_since",
        "_transport",
        "gone",
        "notes",
        "service",
    )

    service: HttpService
    notes: RequestNotes | None
    gone: bool
    _transport: asyncio.Transport | None
    _head: RequestHead | None
    _busy: bool
    _half_closed: bool
    _since: float
    _chunked: bool
    """Of the answer that was begun: whether its pieces are chunks."""
    _kept: bool
    """Whether the connection is kept after it."""

    def begin(self, content_type: bytes, lines: bytes) -> None:
        """Begin the answer to the request that the service was handed; :meth:`send` it, and then :meth:`finish` it.

        Args:
            lines: further header lines, each with its CRLF.
        """
        if self.gone or self._transport is None:
            return
        head, notes = self._head, self.notes
        assert head is not None
        if notes is not None:
            lines += b"x-request-id: %s\r\n" % notes.id
        self._chunked = not head.old
        self._kept = self._chunked and head.keep and not self.service.draining and not self._half_closed
        how = b"transfer-encoding: chunked\r\n" if self._chunked else b""
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n%s%s%s\r\n"
            % (content_type, how, lines, b"" if self._kept else b"connection: close\r\n")
        )

    def send(self, piece: bytes) -> None:
        """A piece of the answer that was begun."""
        if not self.gone and self._transport is not None and piece:
            self._transport.write(b"%x\r\n%s\r\n" % (len(piece), piece) if self._chunked else piece)

    def finish(self) -> None:
        """The answer that was begun is complete."""
        if self.gone or self._transport is None:
            return
        if self.notes is not None:
            self.notes.end(200, self.service.watch)
            self.notes = None
        if self._chunked:
            self._transport.write(b"0\r\n\r\n")
        self._over(keep=self._kept)

    def _over(self, *, keep: bool) -> None:
        """The request is answered."""
        self._busy, self._head, self._since = False, None, self.service.now
        if keep:
            self._go_on()
        else:
            self._end()

    @abstractmethod
    def _go_on(self, now: bool = False) -> None: ...

    @abstractmethod
    def _end(self) -> None: ...
