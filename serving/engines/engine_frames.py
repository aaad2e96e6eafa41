"""Messages between the front and its engine processes: whole request bodies there, whole answers back; never pickle.

A frame holds the requests that came in one turn of the front's loop, and the engine runs them together. What is in a
body only the engine knows: the front keeps it until it is answered, and gives it to another engine if this one dies.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_HEAD = struct.Struct("<IH")
"""Bytes after this head, entries."""
_ASKED = struct.Struct("<IIiBd")
_ANSWERED = struct.Struct("<IIiHB")
_WORK = struct.Struct("<IIIIIB")
MOST_ENTRIES = 1 << 12
LONGEST_ORDER = 1 << 20
"""Bytes of a message to the nursery."""
LONGEST = 1 << 31

PLAIN, GZIP, DEFLATE = 0, 1, 2
"""How a body is packed."""
COUNT_TOKENS = 0x08
"""Added to a request's packing where the answer's body is to end with how many tokens of text were read, 4 bytes."""
MAY_PACK = 0x10
"""Added to a request's packing where the answer may be packed (gzip)."""
CHOSEN = 0x20
"""Added where the variant was chosen by what the request wants, so that the engine need not tell the front of it."""
GENERATE = 0x40
"""Added to the packing of a request that is a GenerationOrder: its answer comes in parts."""
DROP = 0x80
"""Packing of a request without a body: nobody waits for the answer to the one of this number any more."""
PART = 2
"""Status of an answer that is a part: others follow."""
CHOOSE = 1
"""Status of an answer that is none: the body says what the request wants of its variant, and the front is to choose."""


class MalformedFrame(Exception):
    """The other side sent something that is no frame; the connection cannot be used any more."""


class Asked(NamedTuple):
    """A request as the engine gets it.

    ``json_bytes``: length of the JSON part in front of binary tensors; -1: all is JSON, 0: one raw tensor. ``packing``:
    how the body is packed, see PLAIN. ``began``: when it was complete, in seconds of the monotonic clock, which is the
    same in all processes.
    """

    number: int
    body: bytes | memoryview
    json_bytes: int
    packing: int
    began: float


class Answered(NamedTuple):
    """An answer; ``json_bytes`` and ``packing`` as of a request, of the unpacked body."""

    number: int
    body: bytes | memoryview
    json_bytes: int
    status: int
    packing: int


class EngineWork(NamedTuple):
    """What the engine did for a frame of answers, in microseconds; ``done``: whether a request frame is finished."""

    rows: int
    runs: int
    input_us: int
    run_us: int
    output_us: int
    done: bool


def pack_asked(asked: Sequence[Asked]) -> list[bytes | memoryview]:
    """A frame of requests, in parts to be written one after the other."""
    heads = [_ASKED.pack(a.number, len(a.body), a.json_bytes, a.packing, a.began) for a in asked]
    size = sum(len(a.body) for a in asked)
    first = _HEAD.pack(size + len(heads) * _ASKED.size, len(heads)) + b"".join(heads)
    return [first, *(a.body for a in asked)]


def pack_answered(answered: Sequence[Answered], work: EngineWork) -> bytes:
    """A frame of answers."""
    heads = [_ANSWERED.pack(a.number, len(a.body), a.json_bytes, a.status, a.packing) for a in answered]
    size = sum(len(a.body) for a in answered) + len(heads) * _ANSWERED.size + _WORK.size
    return b"".join([_HEAD.pack(size, len(heads)), _WORK.pack(*work), *heads, *(a.body for a in answered)])


def unpack_asked(frame: bytes) -> list[Asked]:
    """The requests of a whole frame. Raises MalformedFrame."""
    count, at = _count(frame), _HEAD.size
    body, found = at + count * _ASKED.size, list[Asked]()
    _room(body, frame, count)
    view = memoryview(frame)
    for _ in range(count):
        number, size, json_bytes, packing, began = _ASKED.unpack_from(frame, at)
        found.append(Asked(number, view[body : body + size], json_bytes, packing, began))
        at, body = at + _ASKED.size, body + size
    _whole(body, frame)
    return found


def unpack_answered(frame: bytes) -> tuple[list[Answered], EngineWork]:
    """The answers of a whole frame. Raises MalformedFrame."""
    count, at = _count(frame), _HEAD.size + _WORK.size
    body, found = at + count * _ANSWERED.size, list[Answered]()
    _room(body, frame, count)
    work = EngineWork(*_WORK.unpack_from(frame, _HEAD.size))
    for _ in range(count):
        number, size, json_bytes, status, packing = _ANSWERED.unpack_from(frame, at)
        found.append(Answered(number, frame[body : body + size], json_bytes, status, packing))
        at, body = at + _ANSWERED.size, body + size
    _whole(body, frame)
    return found, work


class FrameCutter:
    """Cuts a stream of bytes into whole frames, whatever the pieces it arrives in."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._needed = _HEAD.size

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take in the next bytes and yield each frame that is complete. Raises MalformedFrame."""
        if not self._buffer and len(data) >= _HEAD.size and len(data) == _size(data):
            yield data
            return
        self._buffer += data
        while len(self._buffer) >= self._needed:
            if len(self._buffer) < _HEAD.size:
                return
            size = _size(self._buffer)
            if len(self._buffer) < size:
                self._needed = size
                return
            frame = bytes(self._buffer[:size])
            del self._buffer[:size]
            self._needed = _HEAD.size
            yield frame


def _size(data: bytes | bytearray) -> int:
    size, count = _HEAD.unpack_from(data)
    if size > LONGEST or count > MOST_ENTRIES:
        raise MalformedFrame(f"a frame announces {size} bytes in {count} entries; at most {LONGEST}, {MOST_ENTRIES}")
    return int(size) + _HEAD.size


def _count(frame: bytes) -> int:
    if len(frame) < _HEAD.size or _size(frame) != len(frame):
        raise MalformedFrame(f"{len(frame)} bytes are no whole frame")
    count: int = _HEAD.unpack_from(frame)[1]
    return count


def _room(end: int, frame: bytes, count: int) -> None:
    """The heads of all entries, which end there, must be in the frame."""
    if end > len(frame):
        raise MalformedFrame(f"a frame of {len(frame)} bytes says that it has {count} entries")


def _whole(end: int, frame: bytes) -> None:
    if end != len(frame):
        raise MalformedFrame(f"the entries of a frame take {end} bytes of its {len(frame)}")
