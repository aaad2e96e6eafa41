"""MLflow's server behind one user and one password: its ``--app-name winnow``, a plug-in by entry point.

MLflow's own ``basic-auth`` computes a scrypt hash for every request (a tenth of a second of CPU time) and keeps users
and rights in a database of its own, where one user is all that there is here: docs/decisions/0036.
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from model_registry.authorization import mlflow_authorization

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

_REFUSAL = json.dumps(
    {
        "error_code": "UNAUTHENTICATED",
        "message": "MLflow wants its user and password: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; "
        "`winnow status` says where they lie",
    }
).encode()
#: With ``WWW-Authenticate`` a browser asks the user, and sends the answer with all that the pages load.
_HEADERS = [
    (b"content-type", b"application/json"),
    (b"content-length", str(len(_REFUSAL)).encode()),
    (b"www-authenticate", b'Basic realm="MLflow of Winnow", charset="UTF-8"'),
]


class GateMisconfigured(Exception):
    """MLflow would be open: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the server's environment."""


class PasswordGate:
    """Passes on requests that carry the password, and ``GET /health``, which says nothing of what is kept."""

    def __init__(self, app: Application, authorization: str) -> None:
        self._app = app
        self._expected = authorization.encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._may_pass(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 401, "headers": _HEADERS})
            await send({"type": "http.response.body", "body": _REFUSAL})

    def _may_pass(self, scope: Message) -> bool:
        if scope["type"] == "http" and scope["method"] == "GET" and scope["path"] == "/health":
            return True
        return hmac.compare_digest(dict(scope["headers"]).get(b"authorization", b""), self._expected)


def gated_mlflow() -> PasswordGate:
    """What uvicorn serves: MLflow's application behind the gate.

    Raises:
        GateMisconfigured: there is no password.
    """
    header = mlflow_authorization(os.environ)
    if not header:
        raise GateMisconfigured("set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for MLflow's server")
    from mlflow.server.fastapi_app import app

    return PasswordGate(app, header["Authorization"])
