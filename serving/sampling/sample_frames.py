"""A sampled request on its way from the front to the process that writes it: as it came, never pickled."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

_HEAD = struct.Struct("<III")
"""Bytes of what is said of it (JSON), of the request and of the answer."""


class SampledBody(NamedTuple):
    """A request's or an answer's, with how it was sent: see :class:`serving.engines.engine_frames.Asked`."""

    body: bytes
    json_bytes: int
    packing: int


class Sample(NamedTuple):
    """A request and its answer.

    ``time``: of the answer, seconds since 1970; ``inputs``, ``outputs``: tensor specs of the version, as JSON has them.
    """

    time: float
    model: str
    version: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    request: SampledBody
    answer: SampledBody

    @property
    def bytes(self) -> int:
        """Of both bodies."""
        return len(self.request.body) + len(self.answer.body)


def pack_sample(sample: Sample) -> list[bytes]:
    """A frame, in parts to be written one after the other."""
    said = orjson.dumps([*sample[:5], sample.request[1:], sample.answer[1:]])
    request, answer = sample.request.body, sample.answer.body
    return [_HEAD.pack(len(said), len(request), len(answer)), said, request, answer]


class SampleCutter:
    """Cuts a stream of bytes into samples, whatever the pieces it arrives in."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Sample]:
        """Take in the next bytes and yield each sample that is complete."""
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= _HEAD.size:
            sizes = _HEAD.unpack_from(self._buffer, at)
            if len(self._buffer) - at < _HEAD.size + sum(sizes):
                break
            parts = []
            at += _HEAD.size
            for size in sizes:
                parts.append(bytes(self._buffer[at : at + size]))
                at += size
            at_, model, version, inputs, outputs, request, answer = orjson.loads(parts[0])
            bodies = SampledBody(parts[1], *request), SampledBody(parts[2], *answer)
            yield Sample(at_, model, version, inputs, outputs, *bodies)
        del self._buffer[:at]
