"""What an acceptor and the front tell each other of the clients' connections, over one stream.

A frame is the number of a connection, what is said of it, and bytes. The acceptor gives numbers; a number is used again
only once both sides have closed it. Whatever one turn of a loop brings goes over in one write.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

_HEAD = struct.Struct("<IIB")
"""Length of the bytes, number of the connection, what is said."""
MOST_FRAME = 1 << 30
_HIGH_WATER = 4 << 20
"""Bytes on their way beyond which a side reads no more from those that it has them from."""


class LinkBroken(Exception):
    """The other side says what cannot be."""


class Said(IntEnum):
    """What is said of a connection; of all, with number 0, READY and STOP."""

    OPEN = 0
    """To the front: a client is there. The byte 1: over TLS."""
    DATA = 1
    """Bytes of the client, or for it."""
    END = 2
    """Nothing more comes."""
    LOST = 3
    """To the front: the connection is gone."""
    FULL = 4
    """To the front: the client does not read, so that what it is sent piles up."""
    DRAINED = 5
    """To the front: it has read most of that."""
    CLOSE = 6
    """To the acceptor: close it once all is sent."""
    ABORT = 7
    """To the acceptor: close it at once."""
    PAUSE = 8
    """To the acceptor: read no more from the client."""
    RESUME = 9
    """To the acceptor: read on."""
    READY = 10
    """To the front: connections are taken from now on."""
    STOP = 11
    """To the acceptor: take no more connections."""


_SAID = frozenset(Said)


class Frame(NamedTuple):
    """One of them."""

    number: int
    said: int
    data: bytes


def frame_head(number: int, said: int, length: int) -> bytes:
    """What comes before a frame's bytes."""
    return _HEAD.pack(length, number, said)


class LinkReader:
    """Puts frames together from whatever pieces come."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete now. Raises LinkBroken."""
        data = self._rest + data if self._rest else data
        at, end = 0, len(data)
        while end - at >= _HEAD.size:
            length, number, said = _HEAD.unpack_from(data, at)
            if length > MOST_FRAME or said not in _SAID:
                raise LinkBroken(f"a frame of {length} bytes that says {said}")
            if end - at - _HEAD.size < length:
                break
            at += _HEAD.size
            yield Frame(number, said, data[at : at + length])
            at += length
        self._rest = data[at:]


class LinkWriter:
    """Collects what is to be said, and sends it when the loop's turn is over."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._said = list[bytes]()

    def begin(self, transport: asyncio.Transport) -> None:
        """Send by this transport from now on."""
        transport.set_write_buffer_limits(high=_HIGH_WATER)
        self._transport = transport

    def say(self, number: int, said: Said, data: bytes = b"") -> None:
        """Send a frame, soon."""
        if self._transport is None or self._transport.is_closing():
            return
        if not self._said:
            asyncio.get_running_loop().call_soon(self._send)
        self._said.append(frame_head(number, said, len(data)))
        if data:
            self._said.append(data)

    def _send(self) -> None:
        said, self._said = self._said, []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(said)
