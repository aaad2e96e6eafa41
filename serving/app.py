"""The data plane: Open Inference Protocol V2 over HTTP. It takes no URLs and no paths, and changes nothing."""

from __future__ import annotations

import importlib.metadata
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.body import read_body
from serving.exceptions import InvalidRequest, NotReady, ServingError, Unsupported
from serving.limits import RequestLimits
from serving.loaded_version import LoadedVersion
from serving.protocol import answer, parse_request
from serving.rollout import Rollout

PLATFORM = "onnx_onnxv1"
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_VERSION = re.compile(r"[0-9]{1,18}")
_BINARY = "inference-header-content-length"
Handler = Callable[[Request], Awaitable[Response]]
log = logging.getLogger("winnow.serving")


class DataPlane:
    """The handlers, each a method; the routes are in :func:`data_plane`."""

    def __init__(self, rollout: Rollout, limits: RequestLimits) -> None:
        self._rollout = rollout
        self._limits = limits
        self._server = reply(
            {"name": "winnow", "version": importlib.metadata.version("winnow-mlops"), "extensions": []}
        )

    async def infer(self, request: Request) -> Response:
        if _BINARY in request.headers:
            raise Unsupported("binary tensor data is not taken yet; send JSON data")
        body = await read_body(request, limit=self._limits.body_bytes, seconds=self._limits.body_seconds)
        # Chosen only now, and nothing is awaited before the engine has the request: a swap cannot come between.
        version = self._version(request)
        if version.state != "ready":
            raise NotReady(f"version {version.version} of model {version.model!r} is {version.state}: {version.reason}")
        asked = parse_request(body, version.inputs, version.outputs, self._limits)
        outputs = await version.infer(asked)
        return Response(answer(version.model, version.version, outputs, asked.id), media_type="application/json")

    async def server_metadata(self, request: Request) -> Response:
        return self._server

    async def live(self, request: Request) -> Response:
        return reply({"live": True})

    async def ready(self, request: Request) -> Response:
        if reasons := self._rollout.not_ready():
            raise NotReady(f"not ready: {'; '.join(reasons)}")
        return reply({"ready": True, "live": True})

    async def models(self, request: Request) -> Response:
        return reply({"models": sorted(self._rollout.models)})

    async def model_ready(self, request: Request) -> Response:
        version = self._version(request)
        if version.state != "ready":
            raise NotReady(f"version {version.version} of model {version.model!r} is {version.state}: {version.reason}")
        return reply({"name": version.model, "ready": True})

    async def model_metadata(self, request: Request) -> Response:
        version = self._version(request)
        return reply(
            {
                "name": version.model,
                "versions": sorted(self._rollout.models[version.model].versions, key=int),
                "platform": PLATFORM,
                "inputs": [spec.model_dump(mode="json") for spec in version.inputs],
                "outputs": [spec.model_dump(mode="json") for spec in version.outputs],
            }
        )

    def _version(self, request: Request) -> LoadedVersion:
        return self._rollout.version(*model_and_version(request))


def data_plane(rollout: Rollout, limits: RequestLimits) -> Starlette:
    """The ASGI application of the data plane."""
    plane = DataPlane(rollout, limits)
    routes = [
        *_for_model("/infer", plane.infer, "POST"),
        *_for_model("/ready", plane.model_ready, "GET"),
        *_for_model("", plane.model_metadata, "GET"),
        Route("/v2/models", plane.models, methods=["GET"]),
        Route("/v2/health/live", plane.live, methods=["GET"]),
        Route("/v2/health/ready", plane.ready, methods=["GET"]),
        Route("/v2", plane.server_metadata, methods=["GET"]),
    ]
    return application(routes)


def application(routes: list[Route]) -> Starlette:
    """A Starlette application whose every error is ``{"error": text}``."""
    app = Starlette(
        routes=routes,
        exception_handlers={ServingError: _refused, HTTPException: _not_routed, Exception: _unexpected},
    )
    app.router.redirect_slashes = False
    return app


def model_and_version(request: Request) -> tuple[str, str | None]:
    """Model and version from the path; InvalidRequest for names that could be no model's."""
    model, version = request.path_params["model"], request.path_params.get("version")
    if not _MODEL.fullmatch(model):
        raise InvalidRequest(f"model name {model[:80]!a} must match {_MODEL.pattern}")
    if version is not None and not _VERSION.fullmatch(version):
        raise InvalidRequest(f"version {version[:80]!a} must be a whole number")
    return model, version


def reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(value), status, headers, media_type="application/json")


def _for_model(suffix: str, handler: Handler, method: str) -> list[Route]:
    paths = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
    return [Route(f"{path}{suffix}", handler, methods=[method]) for path in paths]


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServingError)
    headers = {"retry-after": "1"} if error.status == 503 else None
    return reply({"error": str(error)}, error.status, headers)


async def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = {404: "there is nothing at this path", 405: f"method {request.method} is not allowed here"}
    return reply({"error": what.get(error.status_code, error.detail)}, error.status_code, dict(error.headers or {}))


async def _unexpected(request: Request, error: Exception) -> Response:
    # Starlette re-raises it after this answer, so that uvicorn logs the stack; the client gets none of it.
    return reply({"error": "internal error; the endpoint's log says more"}, 500)
