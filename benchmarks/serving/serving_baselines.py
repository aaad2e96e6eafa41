"""Two servers without any features, as yardsticks: ``serving_baselines.py asgi|raw MODEL.onnx INPUT PORT``.

``asgi``: what a good engineer writes in an hour: an ASGI application under uvicorn (httptools, uvloop, orjson), the
session in the same process. ``raw``: the least that can be called a server: an asyncio protocol on httptools that
trusts everything.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import httptools
import numpy as np
import onnxruntime
import orjson
import uvloop

_KIND, _FILE, _INPUT, _PORT = sys.argv[1:5]
_OPTIONS = onnxruntime.SessionOptions()
_OPTIONS.intra_op_num_threads = 1
_OPTIONS.add_session_config_entry("session.intra_op.allow_spinning", "0")
_SESSION = onnxruntime.InferenceSession(_FILE, _OPTIONS, providers=["CPUExecutionProvider"])


def answer(body: bytes) -> bytes:
    """A JSON request's JSON answer."""
    asked = orjson.loads(body)["inputs"][0]
    array = np.array(asked["data"], dtype=np.float32).reshape(asked["shape"])
    (found,) = _SESSION.run(None, {_INPUT: array})
    output = {"name": "logits", "shape": found.shape, "datatype": "FP32", "data": found.ravel()}
    return orjson.dumps({"model_name": "m", "outputs": [output]}, option=orjson.OPT_SERIALIZE_NUMPY)


async def application(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    """The ASGI application."""
    parts, more = list[bytes](), True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = answer(b"".join(parts))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Raw(asyncio.Protocol):
    """A connection that trusts its client."""

    def connection_made(self, transport: Any) -> None:
        self._transport, self._body = transport, list[bytes]()
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body = answer(b"".join(self._body))
        self._body = []
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)


async def serve_raw() -> None:
    """Until it is ended."""
    server = await asyncio.get_running_loop().create_server(Raw, "127.0.0.1", int(_PORT), backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    if _KIND == "raw":
        uvloop.run(serve_raw())
    else:
        import uvicorn

        uvicorn.run(
            application,
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="off",
            port=int(_PORT),
            log_level="error",
            access_log=False,
        )
