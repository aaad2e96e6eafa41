"""A body in chunks (RFC 9112, section 7.1), bounded in bytes and in the number of its chunks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.limits import RequestLimits

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?")
_LONGEST_LINE = 256


class MalformedChunks(Exception):
    """The body breaks the chunked coding or a limit; ``status`` is that of the answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class ChunkedBody:
    """Puts a body together from its chunks, whatever the pieces it arrives in. ``body``: as far as it is there."""

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits
        self._buffer = bytearray()
        self._parts = bytearray()
        self._missing = 0
        """Bytes of the chunk that is being read, with its line end."""
        self._chunks = 0
        self._trailing = False

    @property
    def body(self) -> bytes:
        return bytes(self._parts)

    def feed(self, data: bytes) -> bytes | None:
        """Take in the next bytes; what follows the body once it is complete, None before that.

        Raises:
            MalformedChunks: 400 or 413.
        """
        buffer = self._buffer
        buffer += data
        while True:
            if self._missing:
                if len(buffer) < self._missing:
                    return None
                self._take_chunk()
            end = buffer.find(b"\r\n")
            if end > _LONGEST_LINE or (end < 0 and len(buffer) > _LONGEST_LINE):
                raise MalformedChunks(400, f"a chunk's size line is longer than {_LONGEST_LINE} bytes")
            if end < 0:
                return None
            line = bytes(buffer[:end])
            del buffer[: end + 2]
            if self._trailing:  # trailers say nothing that we ask for
                if not line:
                    return bytes(buffer)
                self._count()
                continue
            self._begin_chunk(line)

    def _begin_chunk(self, line: bytes) -> None:
        found = _SIZE.fullmatch(line)
        if found is None:
            raise MalformedChunks(400, "a chunk's size is not valid")
        self._count()
        size = int(found.group(1), 16)
        if len(self._parts) + size > self._limits.body_bytes:
            raise MalformedChunks(
                413, f"the body is longer than {self._limits.body_bytes} bytes; send fewer samples per request"
            )
        if size:
            self._missing = size + 2
        else:
            self._trailing = True

    def _take_chunk(self) -> None:
        size = self._missing - 2
        if self._buffer[size : self._missing] != b"\r\n":
            raise MalformedChunks(400, "a chunk does not end where its size says")
        self._parts += self._buffer[:size]
        del self._buffer[: self._missing]
        self._missing = 0

    def _count(self) -> None:
        self._chunks += 1
        if self._chunks > self._limits.chunks:
            raise MalformedChunks(413, f"the body has more than {self._limits.chunks} chunks")
