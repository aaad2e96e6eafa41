"""The event loop of the endpoint's processes, and what listens on it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from serving.tls import Tls

_BACKLOG = 2048
_HANDSHAKE_SECONDS = 10.0


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Of uvloop; None, asyncio's own, where there is none (it needs Linux or macOS)."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def bound_socket(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(_BACKLOG)  # at once: whoever reads "serving on" may connect, and no other process gets the port
    except OSError:
        sock.close()
        raise
    sock.set_inheritable(False)
    return sock


async def listen(connect: Callable[[], asyncio.Protocol], sock: socket.socket, tls: Tls | None) -> asyncio.Server:
    """Take the connections of a listening socket."""
    loop = asyncio.get_running_loop()
    if tls is None:
        return await loop.create_server(connect, sock=sock, backlog=_BACKLOG)
    return await loop.create_server(
        connect, sock=sock, backlog=_BACKLOG, ssl=tls.context, ssl_handshake_timeout=_HANDSHAKE_SECONDS
    )
