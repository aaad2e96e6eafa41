"""The admin listener: which versions are loaded, and which has the traffic. A port of its own, behind a token."""

from __future__ import annotations

import hmac
import re
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.app import application, model_and_version, reply
from serving.body import read_body
from serving.exceptions import AdminDisabled, InvalidRequest, ServingError, Unauthorized
from serving.loaded_version import LoadedVersion
from serving.protocol import read_object
from serving.rollout import Rollout

_DIGEST = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"[0-9]{1,18}")
_BODY_BYTES = 1 << 16
_BODY_SECONDS = 10.0


class BearerToken:
    """Lets only requests with the token through, whatever their path or method."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode() if token else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        error = self._refusal(dict(scope["headers"]).get(b"authorization", b""))
        if error is None:
            await self._app(scope, receive, send)
            return
        headers = {"www-authenticate": "Bearer"} if error.status == 401 else None
        await reply({"error": str(error)}, error.status, headers)(scope, receive, send)

    def _refusal(self, given: bytes) -> ServingError | None:
        if not self._expected:
            return AdminDisabled("the endpoint was started without WINNOW_ADMIN_TOKEN; set it and start it again")
        if not hmac.compare_digest(given, self._expected):
            return Unauthorized("send the header 'Authorization: Bearer TOKEN' with the endpoint's WINNOW_ADMIN_TOKEN")
        return None


class AdminPlane:
    """The handlers, each a method; the routes are in :func:`admin_plane`."""

    def __init__(self, rollout: Rollout) -> None:
        self._rollout = rollout

    async def models(self, request: Request) -> Response:
        models = [
            {
                "model": name,
                "serving": model.serving,
                "reason": model.reason if model.serving is None else "",
                "versions": [_describe(model.versions[number]) for number in sorted(model.versions, key=int)],
            }
            for name, model in sorted(self._rollout.models.items())
        ]
        return reply({"models": models, "waiting_for": self._rollout.waiting_for})

    async def load(self, request: Request) -> Response:
        model, version = model_and_version(request)
        digest = (await self._body(request)).get("digest")
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise InvalidRequest(f'the body must be {{"digest": 64 hexadecimal digits}}, got digest {_short(digest)}')
        assert version is not None  # by the route
        return reply(_describe(await self._rollout.load(model, version, digest)))

    async def traffic(self, request: Request) -> Response:
        model, _ = model_and_version(request)
        body = await self._body(request)
        version = body.get("version")
        known = version is None or (isinstance(version, str) and _VERSION.fullmatch(version))
        if "version" not in body or not known:
            raise InvalidRequest(
                f'the body must be {{"version": "number"}}, or null for no traffic, got version {_short(version)}'
            )
        return reply({"previous": self._rollout.set_traffic(model, version)})

    async def unload(self, request: Request) -> Response:
        model, version = model_and_version(request)
        assert version is not None  # by the route
        await self._rollout.unload(model, version)
        return reply({"model": model, "version": version, "state": "stopped"})

    @staticmethod
    async def _body(request: Request) -> dict[str, Any]:
        return read_object(await read_body(request, limit=_BODY_BYTES, seconds=_BODY_SECONDS))


def admin_plane(rollout: Rollout, token: str) -> Starlette:
    """The ASGI application of the admin listener; without a token it refuses everything."""
    plane = AdminPlane(rollout)
    app = application(
        [
            Route("/admin/models", plane.models, methods=["GET"]),
            Route("/admin/models/{model}/versions/{version}", plane.load, methods=["PUT"]),
            Route("/admin/models/{model}/versions/{version}", plane.unload, methods=["DELETE"]),
            Route("/admin/models/{model}/traffic", plane.traffic, methods=["POST"]),
        ]
    )
    app.user_middleware = [Middleware(BearerToken, token=token)]
    return app


def _describe(version: LoadedVersion) -> dict[str, Any]:
    return {
        "model": version.model,
        "version": version.version,
        "digest": version.digest,
        "state": version.state,
        "reason": version.reason,
        "pid": version.pid,
        "load_seconds": round(version.load_seconds, 3),
        "restarts": version.restarts,
    }


def _short(value: Any) -> str:
    return repr(value)[:80] if isinstance(value, str | int | float | None) else type(value).__name__
