"""Packed bodies (gzip, deflate): bounded in what they may become."""

from __future__ import annotations

import zlib

from serving.engines.engine_frames import DEFLATE, GZIP
from serving.exceptions import BodyTooLarge, InvalidRequest
from serving.limits import RequestLimits

_WINDOW = {GZIP: 31, DEFLATE: 15}
"""zlib's window bits: with gzip's header, with zlib's (RFC 9110 calls that deflate)."""
_LEVEL = 1
LEAST_PACKED = 1024
"""Bytes below which packing an answer gains nothing."""


def unpacked_body(body: bytes | memoryview, packing: int, limits: RequestLimits) -> bytes:
    """The body as it was before it was packed.

    Raises:
        InvalidRequest: it is not packed so, or ends early.
        BodyTooLarge: it becomes longer than allowed, altogether or by its ratio.
    """
    most = min(limits.unpacked_bytes, limits.unpacked_ratio * max(len(body), 1024))
    unpacker = zlib.decompressobj(_WINDOW[packing])
    try:
        found = unpacker.decompress(body, most + 1)
    except zlib.error as error:
        raise InvalidRequest(f"the body is not what its content-encoding says: {error}") from error
    if len(found) > most:
        raise BodyTooLarge(f"the body becomes longer than {most} bytes when it is unpacked; send it in parts")
    if not unpacker.eof or unpacker.unused_data:
        raise InvalidRequest("the packed body ends too early, or something follows it")
    return found


def packed_body(body: bytes) -> bytes:
    """The body in gzip's form."""
    return zlib.compress(body, _LEVEL, wbits=_WINDOW[GZIP])
