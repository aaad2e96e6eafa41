"""Messages between the endpoint and its engine processes: a JSON header and raw tensors, framed; never pickle.

Frame: uint32 header length, uint64 body length (both little-endian), header (JSON), body (the raw tensors in order).
The header's ``tensors`` gives name, datatype, shape and byte count of each.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from serving.tensors import Array, datatype_of, from_raw, to_raw

PREFIX = struct.Struct("<IQ")
MAX_HEADER = 1 << 24
MAX_BODY = 1 << 32


class MalformedFrame(Exception):
    """The other side of the pipe sent something that is no frame; the connection cannot be used any more."""


@dataclass(frozen=True)
class Frame:
    """One message: ``header`` without its ``tensors`` key, and the tensors by name."""

    header: dict[str, Any]
    tensors: dict[str, Array] = field(default_factory=dict)


def encode(header: Mapping[str, Any], tensors: Mapping[str, Array] | None = None) -> bytes:
    """The frame as bytes."""
    raws = {name: to_raw(array) for name, array in (tensors or {}).items()}
    described = [
        {"name": name, "datatype": datatype_of(array), "shape": array.shape, "bytes": len(raws[name])}
        for name, array in (tensors or {}).items()
    ]
    head = orjson.dumps({**header, "tensors": described})
    size = sum(map(len, raws.values()))
    if len(head) > MAX_HEADER or size > MAX_BODY:
        raise MalformedFrame(f"a frame of {len(head)} + {size} bytes is larger than {MAX_HEADER} + {MAX_BODY}")
    return b"".join([PREFIX.pack(len(head), size), head, *raws.values()])


def sizes(prefix: bytes | bytearray) -> tuple[int, int]:
    """Header and body length from the first ``PREFIX.size`` bytes; MalformedFrame if they are out of bounds."""
    head, body = PREFIX.unpack(prefix)
    if head > MAX_HEADER or body > MAX_BODY:
        raise MalformedFrame(f"a frame announces {head} + {body} bytes; at most {MAX_HEADER} + {MAX_BODY} are read")
    return head, body


def decode(head: bytes | memoryview, body: bytes | memoryview) -> Frame:
    """The frame of these two parts. Raises MalformedFrame or MalformedTensor."""
    try:
        header = orjson.loads(head)
        described = header.pop("tensors")
        view, position = memoryview(body), 0
        tensors: dict[str, Array] = {}
        for entry in described:
            raw = view[position : position + entry["bytes"]]
            tensors[entry["name"]] = from_raw(raw, entry["datatype"], tuple(entry["shape"]))
            position += entry["bytes"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MalformedFrame(f"unreadable frame: {type(error).__name__}: {error}") from error
    if position != len(body):
        raise MalformedFrame(f"a frame's tensors take {position} bytes of its {len(body)}")
    return Frame(header, tensors)


class Decoder:
    """Cuts a stream of bytes into frames, whatever the pieces it arrives in."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._needed = PREFIX.size

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take in the next bytes and yield every frame that is complete."""
        self._buffer += data
        while len(self._buffer) >= self._needed:
            head, body = sizes(self._buffer[: PREFIX.size])
            start, end = PREFIX.size + head, PREFIX.size + head + body
            if len(self._buffer) < end:
                self._needed = end
                return
            whole = bytes(self._buffer[:end])
            del self._buffer[:end]
            self._needed = PREFIX.size
            yield decode(whole[PREFIX.size : start], whole[start:])
