"""Reads request bodies: bounded in size and time, whatever the headers promise."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from serving.exceptions import BodyTooLarge, InvalidRequest, RequestTimedOut, UnsupportedEncoding


async def read_body(request: Request, *, limit: int, seconds: float) -> bytes:
    """The whole body.

    Raises:
        UnsupportedEncoding: it is compressed (a small body must not become a large one).
        BodyTooLarge: it is, or says it is, longer than ``limit`` bytes.
        RequestTimedOut: it did not arrive within ``seconds``.
        InvalidRequest: the client hung up in the middle of it.
    """
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise UnsupportedEncoding(f"content-encoding {encoding[:40]!a} is not taken; send the body uncompressed")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:18]) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                parts.append(part)
    except TimeoutError as error:
        raise RequestTimedOut(f"the body did not arrive within {seconds:g} s; send it again") from error
    except ClientDisconnect as error:
        raise InvalidRequest("the connection was closed in the middle of the body") from error
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is longer than {limit} bytes; send fewer samples per request")
