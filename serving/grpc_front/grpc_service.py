"""The calls of the Open Inference Protocol over gRPC, each handed to the HTTP front and answered with what it says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import grpc
import grpc.aio
import orjson
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message

from serving.exceptions import InferenceTimedOut, InvalidRequest, ServingError
from serving.front.http_routes import check_names
from serving.grpc_front import inference_pb2 as messages
from serving.grpc_front.front_link import FrontAnswer, FrontLink
from serving.grpc_front.infer_messages import infer_body, infer_response
from serving.limits import RequestLimits

_SERVICE = "inference.GRPCInferenceService"
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    431: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""By HTTP status; every other is INTERNAL."""
_FORWARDED = ("authorization", "x-request-id", "traceparent", "tracestate")
"""Metadata that the front is given as headers."""
_UNREADY = (404, 503)
_NO_DEADLINE = 86400.0
"""From here on it is none: some clients send one of years."""
_LARGE_BYTES = 1 << 20
"""Of a message: it is turned round beside the loop, which others wait for."""
_MOST_CALLS = 64
"""That are read and answered at a time: what others send waits with their clients, not in memory."""
_MARGIN_SECONDS = 5.0
"""The front gives up before we do, for it knows why."""
log = logging.getLogger("winnow.serving")


class Caller(NamedTuple):
    """What a call says beside its message. ``seconds``: until its deadline, None for none."""

    headers: dict[str, str]
    seconds: float | None


class _Refused(ServingError):
    """What the front answered with."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class GrpcService:
    """Answers the calls."""

    def __init__(self, link: FrontLink, limits: RequestLimits) -> None:
        self._link, self._limits = link, limits
        self._seats = asyncio.Semaphore(_MOST_CALLS)

    def handlers(self) -> grpc.GenericRpcHandler:
        """For ``grpc.server``."""
        answers: dict[str, tuple[Any, Callable[[Any, Caller], Awaitable[Message]]]] = {
            "ServerLive": (messages.ServerLiveRequest, self.server_live),
            "ServerReady": (messages.ServerReadyRequest, self.server_ready),
            "ModelReady": (messages.ModelReadyRequest, self.model_ready),
            "ServerMetadata": (messages.ServerMetadataRequest, self.server_metadata),
            "ModelMetadata": (messages.ModelMetadataRequest, self.model_metadata),
            "ModelInfer": (messages.ModelInferRequest, self.model_infer),
            "ModelStatistics": (messages.ModelStatisticsRequest, self.model_statistics),
            "RepositoryIndex": (messages.RepositoryIndexRequest, self.repository_index),
        }
        return grpc.method_handlers_generic_handler(
            _SERVICE,
            {name: self._handler(kind, answer) for name, (kind, answer) in answers.items()},
        )

    def _handler(
        self, kind: Any, answer: Callable[[Any, Caller], Awaitable[Message]]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """A call's handler.

        All calls are of one message. They are taken as if they streamed, which is the same on the wire, since only then
        are we asked before the message is there: grpc sets no limit to when it comes. It is read here, for grpc would
        take a malformed one for a fault of ours.
        """
        seconds = self._limits.body_seconds

        async def handle(arriving: Any, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            async with self._seats:
                try:
                    async with asyncio.timeout(seconds):
                        raw = await context.read()
                except TimeoutError:
                    late = f"the message did not arrive within {seconds:g} s"
                    await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, late)
                try:
                    if raw is grpc.aio.EOF:
                        raise InvalidRequest(f"the call has no message, a {kind.DESCRIPTOR.name}")
                    found: bytes = (await answer(kind.FromString(raw), _caller(context))).SerializeToString()
                    return found
                except DecodeError:
                    code, text = grpc.StatusCode.INVALID_ARGUMENT, f"the message is not a {kind.DESCRIPTOR.name}"
                except ServingError as error:
                    code, text = _CODES.get(error.status, grpc.StatusCode.INTERNAL), str(error)
                except Exception:  # whatever it is, the client is answered and the log says it
                    log.exception("a fault of the endpoint's own on %s", kind.DESCRIPTOR.name)
                    code, text = grpc.StatusCode.INTERNAL, "internal error; the endpoint's log says more"
            await context.abort(code, text)
            raise AssertionError("abort raises")

        return grpc.stream_unary_rpc_method_handler(handle)

    async def model_infer(self, request: messages.ModelInferRequest, caller: Caller) -> Message:
        path = f"{_path(request.model_name, request.model_version)}/infer"
        large = request.ByteSize() > _LARGE_BYTES
        if large:
            body, json_bytes = await asyncio.to_thread(self._body, request, caller)
        else:
            body, json_bytes = self._body(request, caller)
        answer = await self._ask("POST", path, caller, body, json_bytes)
        large = len(answer.body) > _LARGE_BYTES
        return await asyncio.to_thread(infer_response, answer) if large else infer_response(answer)

    def _body(self, request: messages.ModelInferRequest, caller: Caller) -> tuple[bytes, int]:
        return infer_body(request, caller.seconds, most_elements=self._limits.elements)

    async def server_live(self, request: messages.ServerLiveRequest, caller: Caller) -> Message:
        await self._ask("GET", "/v2/health/live", caller)
        return messages.ServerLiveResponse(live=True)

    async def server_ready(self, request: messages.ServerReadyRequest, caller: Caller) -> Message:
        return messages.ServerReadyResponse(ready=await self._is_ready("/v2/health/ready", caller))

    async def model_ready(self, request: messages.ModelReadyRequest, caller: Caller) -> Message:
        path = f"{_path(request.name, request.version)}/ready"
        return messages.ModelReadyResponse(ready=await self._is_ready(path, caller))

    async def server_metadata(self, request: messages.ServerMetadataRequest, caller: Caller) -> Message:
        return await self._told("/v2", caller, messages.ServerMetadataResponse())

    async def model_metadata(self, request: messages.ModelMetadataRequest, caller: Caller) -> Message:
        return await self._told(_path(request.name, request.version), caller, messages.ModelMetadataResponse())

    async def model_statistics(self, request: messages.ModelStatisticsRequest, caller: Caller) -> Message:
        if request.version and not request.name:
            raise InvalidRequest("a version alone says nothing; send the model's name with it")
        of = _path(request.name, request.version) if request.name else "/v2/models"
        return await self._told(f"{of}/stats", caller, messages.ModelStatisticsResponse())

    async def repository_index(self, request: messages.RepositoryIndexRequest, caller: Caller) -> Message:
        if request.repository_name:
            raise InvalidRequest("there is one repository, without a name; leave repository_name empty")
        found = orjson.loads((await self._ask("POST", "/v2/repository/index", caller)).body)
        models = [model for model in found if model["state"] == "READY" or not request.ready]
        return ParseDict({"models": models}, messages.RepositoryIndexResponse())

    async def _told(self, path: str, caller: Caller, message: Message) -> Message:
        """The front's JSON as a message: the two have the same members."""
        found = orjson.loads((await self._ask("GET", path, caller)).body)
        return ParseDict(found, message)

    async def _is_ready(self, path: str, caller: Caller) -> bool:
        try:
            await self._ask("GET", path, caller)
        except _Refused as refused:
            if refused.status in _UNREADY:
                return False
            raise
        return True

    async def _ask(
        self, method: str, path: str, caller: Caller, body: bytes = b"", json_bytes: int = -1
    ) -> FrontAnswer:
        longest = self._limits.infer_seconds + _MARGIN_SECONDS
        seconds = longest if caller.seconds is None else min(longest, caller.seconds)
        if seconds <= 0:
            raise InferenceTimedOut("the call's deadline was over before it was begun")
        answer = await self._link.ask(
            method, path, body, seconds=seconds, headers=caller.headers, json_bytes=json_bytes
        )
        if answer.status != 200:
            raise _Refused(answer.status, orjson.loads(answer.body)["error"])
        return answer


def _path(model: str, version: str) -> str:
    # Checked here, for in a path a name of several parts would be one of another model, or call.
    check_names(model, version or None)
    return f"/v2/models/{model}/versions/{version}" if version else f"/v2/models/{model}"


def _caller(context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
    headers: dict[str, str] = {}
    for name, value in context.invocation_metadata() or ():
        if name in _FORWARDED:
            headers.setdefault(name, value)
    left = context.time_remaining()
    return Caller(headers, None if left is None or left > _NO_DEADLINE else left)
