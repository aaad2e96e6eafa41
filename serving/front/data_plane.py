"""The data plane: Open Inference Protocol V2 over HTTP. It takes no URLs and no paths, and changes nothing."""

from __future__ import annotations

import importlib.metadata
import time
from dataclasses import replace
from typing import Any

from serving.engines.engine_frames import DEFLATE, GZIP, MAY_PACK, PLAIN, Answered
from serving.engines.infer_job import InferJob
from serving.exceptions import InvalidRequest, NotReady, ServingError, UnsupportedEncoding
from serving.front.api_guide import ApiGuide
from serving.front.http_connection import HttpConnection
from serving.front.http_head import RequestHead
from serving.front.http_routes import Handler, Route, RouteTable
from serving.front.http_service import RoutedService, lines_of_status, reply
from serving.key_ring import KeyRing
from serving.limits import RequestLimits
from serving.rollout import Rollout

PLATFORM = "onnx_onnxv1"
EXTENSIONS = ("binary_tensor_data", "statistics", "model_repository")
_JSON_BYTES = b"inference-header-content-length"
_PACKINGS = {b"identity": PLAIN, b"gzip": GZIP, b"deflate": DEFLATE}
_FEW = 2
"""Connections up to which a request goes to its engine at once: there is nothing to wait for."""


class DataPlane(RoutedService):
    """Health, metadata, statistics and inference."""

    def __init__(self, rollout: Rollout, limits: RequestLimits, keys: KeyRing) -> None:
        self._rollout, self._keys = rollout, keys
        release = importlib.metadata.version("winnow-mlops")
        guide = ApiGuide(rollout, limits, keys, release)
        self._open: tuple[Handler, ...] = (self._live, self._ready, guide.as_json, guide.as_page)
        """Whoever watches the endpoint needs no key, nor who wants to know how to ask it."""
        self._server = {"name": "winnow", "version": release, "extensions": list(EXTENSIONS)}
        plain: dict[str, dict[str, Handler]] = {
            "/v2/models": {"GET": self._models},
            "/v2/models/stats": {"GET": self._all_stats},
            "/v2/health/live": {"GET": self._live},
            "/v2/health/ready": {"GET": self._ready},
            "/v2/repository/index": {"POST": self._index},
            "/v2": {"GET": lambda c, h, b: reply(c, self._server)},
            "/openapi.json": {"GET": guide.as_json},
            "/docs": {"GET": guide.as_page},
        }
        for_model: dict[str, dict[str, Handler]] = {
            "": {"GET": self._model_metadata},
            "/ready": {"GET": self._model_ready},
            "/stats": {"GET": self._model_stats},
            "/infer": {"POST": self._infer},
        }
        routes = RouteTable(plain, for_model, root="v2", infer="/infer")
        guide.operations = tuple(routes.operations())
        super().__init__(routes, limits)

    def permit(self, head: RequestHead, route: Route) -> None:
        if self._keys.wanted and route.handler not in self._open:
            who = self._keys.find(head.headers.get(b"authorization", b""))
            who.require("infer" if route.infers else "read", route.model)
            route = head.route = replace(route, principal=who)
        if route.infers:
            json_bytes, packing = _how_sent(head)
            head.route = replace(route, json_bytes=json_bytes, packing=packing)
        elif head.headers.get(b"content-encoding", b"identity") != b"identity":
            raise UnsupportedEncoding("only inference requests may be packed; send the body uncompressed")

    def tick(self) -> None:
        if self._keys.reload():
            self.heads.forget()
        super().tick()

    # -- inference --------------------------------------------------------------------------------------------------
    def _infer(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        # Chosen only now that the body is complete, and taken at once: a swap cannot come between.
        sent: Route = head.route
        if sent.principal is not None:
            sent.principal.require("infer", sent.model)
            sent.principal.spend()
        version = self._rollout.version(sent.model, sent.version or None)
        job = HttpJob(connection, body, sent.json_bytes, sent.packing, began=time.monotonic())
        try:
            version.submit(job, at_once=len(self.connections) <= _FEW)
        except ServingError as error:
            version.stats.refused(error.status)
            raise

    # -- what there is ----------------------------------------------------------------------------------------------
    def _live(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        reply(connection, {"live": True})

    def _ready(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        if reasons := self._rollout.not_ready():
            raise NotReady(f"not ready: {'; '.join(reasons)}")
        reply(connection, {"ready": True, "live": True})

    def _models(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        reply(connection, {"models": sorted(self._rollout.models)})

    def _model_ready(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        version = self._version(head)
        if version.state != "ready":
            raise NotReady(f"version {version.version} of model {version.model!r} is {version.state}: {version.reason}")
        reply(connection, {"name": version.model, "ready": True})

    def _model_metadata(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        version = self._version(head)
        reply(
            connection,
            {
                "name": version.model,
                "versions": sorted(self._rollout.models[version.model].versions, key=int),
                "platform": PLATFORM,
                "inputs": [spec.model_dump(mode="json") for spec in version.inputs],
                "outputs": [spec.model_dump(mode="json") for spec in version.outputs],
            },
        )

    def _model_stats(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        route: Route = head.route
        versions = [self._version(head)]
        if not route.version:
            versions = list(self._rollout.models[route.model].versions.values())
        reply(connection, {"model_stats": [v.stats.as_v2(v.model, v.version) for v in versions]})

    def _all_stats(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        versions = [v for model in self._rollout.models.values() for v in model.versions.values()]
        reply(connection, {"model_stats": [v.stats.as_v2(v.model, v.version) for v in versions]})

    def _index(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        found = [
            {
                "name": version.model,
                "version": version.version,
                "state": "READY" if version.state == "ready" else "UNAVAILABLE",
                "reason": version.reason,
            }
            for model in self._rollout.models.values()
            for version in model.versions.values()
        ]
        reply(connection, found)

    def _version(self, head: RequestHead) -> Any:
        route: Route = head.route
        return self._rollout.version(route.model, route.version or None)


class HttpJob(InferJob):
    """An inference request of an HTTP connection."""

    __slots__ = ("_connection",)

    def __init__(self, connection: HttpConnection, body: bytes, json_bytes: int, packing: int, *, began: float) -> None:
        super().__init__(body, json_bytes, packing, began=began)
        self._connection = connection

    @property
    def wanted(self) -> bool:
        return not self._connection.gone

    def deliver(self, answered: Answered) -> None:
        status, body = answered.status, answered.body
        assert isinstance(body, bytes)
        if status == 200 and answered.json_bytes < 0 and answered.packing == PLAIN:
            self._connection.answer(200, body)
            return
        lines, kind = b"" if status == 200 else lines_of_status(status), b"application/json"
        if answered.json_bytes >= 0:
            lines += b"inference-header-content-length: %d\r\n" % answered.json_bytes
            kind = b"application/octet-stream"
        if answered.packing == GZIP:
            lines += b"content-encoding: gzip\r\n"
        self._connection.answer(status, body, lines, kind)


def _how_sent(head: RequestHead) -> tuple[int, int]:
    """Bytes of the JSON part, and the packing, of an inference request.

    Raises:
        InvalidRequest, UnsupportedEncoding: its headers say something that cannot be.
    """
    encoding = head.headers.get(b"content-encoding", b"identity").lower()
    if encoding not in _PACKINGS:
        text = encoding[:40].decode("latin-1")
        raise UnsupportedEncoding(f"content-encoding {text!a} is not taken; send identity, gzip or deflate")
    packing = _PACKINGS[encoding]
    # Most libraries say that they take several packings, whatever they want; that is no reason to spend time on one.
    if head.headers.get(b"accept-encoding", b"").strip() == b"gzip":
        packing |= MAY_PACK
    announced = head.headers.get(_JSON_BYTES)
    if announced is None:
        return -1, packing
    if not announced.isdigit() or len(announced) > 9:
        text = announced[:40].decode("latin-1")
        raise InvalidRequest(f"{_JSON_BYTES.decode()} must be the length of the JSON part in bytes, got {text!a}")
    return int(announced), packing
