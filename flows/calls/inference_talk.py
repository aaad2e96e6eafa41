"""What is said between a client and the endpoint, whoever sends it: steps for :class:`winnow.Client` and its like.

Each call is a generator. It yields what to send, or how long to wait, and is given what came back; so the order of
questions, the retries and the reading of answers are written once for callers that wait and for those that await.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
import orjson

from flows.calls.inference_errors import refusal_of, retry_after
from model_registry.endpoint_client import EndpointError, EndpointUnreachable
from model_registry.variant import TensorSpec
from serving.exceptions import InvalidRequest
from serving.sample_values import SampleReader, as_text
from serving.tensors import NUMPY, Array, MalformedTensor, bytes_array, from_raw, to_raw

_JSON_BYTES = "inference-header-content-length"
_CLOSED = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
"""What a request on a connection meets that the server has closed meanwhile."""
_GRACE = 2.0
"""Seconds beyond a request's own time, for the endpoint's answer that it is over."""

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """A request to send. ``seconds``: to wait for its answer; None = the client's own time."""

    method: str
    path: str
    content: bytes | None = None
    headers: Mapping[str, str] | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Pause:
    """Seconds to wait before the next question."""

    seconds: float


Heard = httpx.Response | httpx.HTTPError | None
Talk = Generator[Question | Pause, Heard, T]


@dataclass(frozen=True)
class ModelMetadata:
    """What a served model takes and answers.

    Attributes:
        name: of the model.
        versions: that are loaded, by number.
        inputs: name, datatype and shape of each; -1 is free, the batch comes first.
        outputs: the same of each output.
    """

    name: str
    versions: tuple[int, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Wants(TypedDict, total=False):
    """What a call may want of the variant that answers it; see ``docs/serving.md``.

    ``variant``: a version, a variant's name, or the first digits of its digest. ``min_accuracy``: least value of the
    metric; the fastest variant that has it answers. ``max_latency_ms``: milliseconds in which an answer is wanted; the
    most accurate variant that is expected to keep that answers.
    """

    variant: str
    min_accuracy: float
    max_latency_ms: float


class InferenceTalk:
    """The calls of one client; it remembers the inputs of the models that were asked.

    Args:
        patience: seconds; a refusal that asks for a longer pause is raised at once.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._metadata: dict[tuple[str, int | None], ModelMetadata] = {}
        self._answered = False

    def models(self) -> Talk[list[str]]:
        told = yield from self._object(Question("GET", "/v2/models"))
        return [str(name) for name in _member(told, "models", list)]

    def metadata(self, model: str, version: int | None = None) -> Talk[ModelMetadata]:
        told = yield from self._object(Question("GET", _path(model, version)))
        found = ModelMetadata(
            name=_member(told, "name", str),
            versions=tuple(int(number) for number in _member(told, "versions", list)),
            inputs=_specs(told, "inputs"),
            outputs=_specs(told, "outputs"),
        )
        self._metadata[model, version] = found
        return found

    def ready(self, model: str | None = None) -> Talk[bool]:
        path = "/v2/health/ready" if model is None else f"{_path(model, None)}/ready"
        response = yield from self._exchange(Question("GET", path), waits=False)
        if response.status_code in (404, 503):
            return False
        if response.status_code != 200:
            raise refusal_of(response)
        return True

    def infer(self, model: str, request: Mapping[str, Any], version: int | None = None) -> Talk[dict[str, Array]]:
        body = orjson.dumps(dict(request), option=orjson.OPT_SERIALIZE_NUMPY)
        response = yield from self._exchange(
            Question("POST", f"{_path(model, version)}/infer", body, {"content-type": "application/json"})
        )
        return _outputs(response)

    def predict(
        self,
        model: str,
        given: Any,
        version: int | None,
        *,
        one: bool,
        outputs: Sequence[str] | None = None,
        timeout: float | None = None,
        wants: Wants | None = None,
    ) -> Talk[dict[str, Array]]:
        """The outputs for one sample or a batch of them, each with the batch dimension."""
        asked = partial(self._predict, one=one, outputs=outputs, timeout=timeout, wishes=wish_headers(wants or {}))
        known = self._metadata.get((model, version))
        before = known or (yield from self.metadata(model, version))
        try:
            return (yield from asked(before, given, version))
        except InvalidRequest:
            if known is None:
                raise
            # The traffic may have gone to a version of other inputs since they were asked for.
            after = yield from self.metadata(model, version)
            if after.inputs == before.inputs:
                raise
        return (yield from asked(after, given, version))

    def _predict(
        self,
        metadata: ModelMetadata,
        given: Any,
        version: int | None,
        *,
        one: bool,
        outputs: Sequence[str] | None,
        timeout: float | None,
        wishes: Mapping[str, str],
    ) -> Talk[dict[str, Array]]:
        reader = SampleReader(metadata.name, metadata.inputs)
        rows = reader.one(given) if one else reader.batch(given)
        body, json_bytes = _binary_request(metadata.inputs, rows, outputs, timeout)
        question = Question(
            "POST",
            f"{_path(metadata.name, version)}/infer",
            body,
            {"content-type": "application/octet-stream", _JSON_BYTES: str(json_bytes), **wishes},
            None if timeout is None else timeout + _GRACE,
        )
        return _outputs((yield from self._exchange(question)))

    def _object(self, question: Question) -> Talk[dict[str, Any]]:
        response = yield from self._exchange(question)
        if response.status_code != 200:
            raise refusal_of(response)
        return _json_object(response.content)

    def _exchange(self, question: Question, *, waits: bool = True) -> Talk[httpx.Response]:
        """Ask, once more where the connection had been closed, and once more where the endpoint says when.

        An inference changes nothing, so that it may be sent twice.
        """
        redone, waited = not self._answered, not waits
        while True:
            heard = yield question
            if isinstance(heard, _CLOSED) and not redone:
                redone = True
                continue
            if not isinstance(heard, httpx.Response):
                what = f"{type(heard).__name__}: {heard}" if str(heard) else type(heard).__name__
                raise EndpointUnreachable(
                    f"no answer from the endpoint: {what}; `winnow status` tells whether the one of the stack runs"
                ) from heard
            self._answered = True
            pause = retry_after(heard) if heard.status_code in (429, 503) else math.nan
            if not waited and pause <= self._patience:
                waited = True
                yield Pause(pause)
                continue
            return heard


def wish_headers(wants: Wants) -> dict[str, str]:
    """What a request wants of the variant that answers it, as headers."""
    said = {f"winnow-{name.replace('_', '-')}": str(value) for name, value in wants.items() if value is not None}
    for name, value in said.items():
        if not (value.isascii() and value.isprintable()):
            raise InvalidRequest(f"{name.removeprefix('winnow-')} {value!r} is none: it has to be printable ASCII")
    return said


def _path(model: str, version: int | None) -> str:
    if "/" in model or model in ("", ".", ".."):  # would be another path
        raise InvalidRequest(f"{model!r} is no name of a model")
    return f"/v2/models/{quote(model, safe='')}" + ("" if version is None else f"/versions/{int(version)}")


def _binary_request(
    inputs: Sequence[TensorSpec], rows: Mapping[str, Array], outputs: Sequence[str] | None, timeout: float | None
) -> tuple[bytes, int]:
    """The body, JSON and raw tensors behind it, and the length of the JSON part."""
    raws = {spec.name: to_raw(rows[spec.name]) for spec in inputs}
    parameters: dict[str, Any] = {"binary_data_output": True}
    if timeout is not None:
        parameters["timeout"] = max(1, round(timeout * 1e6))
    request: dict[str, Any] = {
        "parameters": parameters,
        "inputs": [
            {
                "name": spec.name,
                "datatype": spec.datatype,
                "shape": list(rows[spec.name].shape),
                "parameters": {"binary_data_size": len(raws[spec.name])},
            }
            for spec in inputs
        ],
    }
    if outputs is not None:
        request["outputs"] = [{"name": name} for name in outputs]
    head = orjson.dumps(request)
    return b"".join([head, *raws.values()]), len(head)


def _outputs(response: httpx.Response) -> dict[str, Array]:
    """The tensors of an answer by name, BYTES as text; raises what another answer than 200 stands for."""
    if response.status_code != 200:
        raise refusal_of(response)
    content = memoryview(response.content)
    json_bytes = int(response.headers.get(_JSON_BYTES, len(content)))
    found, at = {}, json_bytes
    for tensor in _member(_json_object(content[:json_bytes]), "outputs", list):
        name, datatype, shape = tensor["name"], tensor["datatype"], tuple(tensor["shape"])
        size = tensor.get("parameters", {}).get("binary_data_size")
        if size is None:
            array = _from_json(tensor["data"], datatype, shape)
        else:
            try:
                array = from_raw(content[at : at + size], datatype, shape)
            except MalformedTensor as error:
                raise EndpointError(f"the endpoint's output {name!r} is malformed: {error}") from error
            array = array.copy()  # a view of the answer could not be written to, and would keep all of it
            at += size
        found[name] = as_text(array)
    return found


def _from_json(data: list[Any], datatype: str, shape: tuple[int, ...]) -> Array:
    if datatype == "BYTES":
        return bytes_array([str(value).encode() for value in data], shape)
    numbers = [math.nan if value is None else value for value in data]  # NaN travels as null
    return np.array(numbers, dtype=NUMPY[datatype]).reshape(shape)


def _json_object(content: bytes | memoryview) -> dict[str, Any]:
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise EndpointError(f"what answered is no endpoint: its answer is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise EndpointError("what answered is no endpoint: its answer is no JSON object")
    return found


def _member(told: Mapping[str, Any], name: str, kind: type[T]) -> T:
    found = told.get(name)
    if not isinstance(found, kind):
        raise EndpointError(f"what answered is no endpoint: its answer has no {name}")
    return found


def _specs(told: Mapping[str, Any], member: str) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec.model_validate(spec) for spec in _member(told, member, list))
