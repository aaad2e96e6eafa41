"""Hands requests that came through Ray's proxies to the endpoint of the replica, as they are, and its answers back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from serving.front.http_connection import error_body
from serving.limits import RequestLimits

if TYPE_CHECKING:
    import aiohttp

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_OF_A_CONNECTION = {
    *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    b"expect",  # the body is here already
}


class RayForwarder:
    """An ASGI application.

    Args:
        url: of the endpoint.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._session: aiohttp.ClientSession | None = None
        self._most = RequestLimits().body_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
        else:
            await self._request(scope, receive, send)

    async def _request(self, scope: Message, receive: Receive, send: Send) -> None:
        import aiohttp
        from yarl import URL

        body = await self._body(receive)
        if body is None:
            await _refuse(send, 413, f"the body is longer than {self._most} bytes; send less at a time")
            return
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in _passed_on(scope["headers"])
            if name.lower() != b"content-length"  # said again of the body that is sent on
        ]
        try:
            async with self._connected().request(
                scope["method"],
                URL(self._url + _target(scope), encoded=True),
                headers=headers,
                data=body or None,
                allow_redirects=False,
            ) as answer:
                await _answer(send, answer.status, _passed_on(answer.raw_headers), await answer.read())
        except aiohttp.ClientError as error:
            await _refuse(send, 503, f"the replica's endpoint went away ({type(error).__name__}); send it again")

    async def _body(self, receive: Receive) -> bytes | None:
        """All of it; None where it is longer than the endpoint takes."""
        parts, size, more = list[bytes](), 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise asyncio.CancelledError
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > self._most:
                return None
        return b"".join(parts)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                if self._session is not None:
                    await self._session.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _connected(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(),  # the endpoint has its own
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            )
        return self._session


def _passed_on(headers: Any) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name.lower() not in _OF_A_CONNECTION]


def _target(scope: Message) -> str:
    """Path and query, below the prefix that the application has in Ray Serve."""
    from urllib.parse import quote

    path = (scope.get("raw_path") or quote(scope["path"]).encode()).decode("latin-1").partition("?")[0]
    path = path.removeprefix(scope.get("root_path", "")) or "/"
    query = scope.get("query_string", b"").decode("latin-1")
    return f"{path}?{query}" if query else path


async def _refuse(send: Send, status: int, text: str) -> None:
    body = error_body(text)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await _answer(send, status, [*headers, *([(b"retry-after", b"1")] if status == 503 else [])], body)


async def _answer(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
