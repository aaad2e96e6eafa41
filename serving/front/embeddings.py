"""``/v1/embeddings``: vectors of texts in the form of OpenAI's API, by any model that makes vectors of text."""

from __future__ import annotations

import base64
import struct
import time
from dataclasses import dataclass

import orjson

from model_registry.text_input import TEXT
from serving.engines.engine_frames import COUNT_TOKENS, PLAIN, Answered
from serving.engines.infer_job import InferJob
from serving.exceptions import InvalidRequest, ServingError
from serving.front.continuation import Refuser
from serving.front.http_connection import HttpConnection
from serving.key_ring import Principal
from serving.loaded_version import LoadedVersion

_MOST = 2048
"""Texts in a request."""


@dataclass(frozen=True)
class EmbeddingRequest:
    """What is asked for; ``packed``: whether vectors come as base64 of little-endian float32."""

    model: str
    texts: tuple[str, ...]
    packed: bool


def read_embeddings(body: bytes) -> EmbeddingRequest:
    """A request to ``/v1/embeddings``.

    Raises:
        InvalidRequest: a field is missing, wrong, or not offered; names it.
    """
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(given, dict) or not isinstance(given.get("model"), str):
        raise InvalidRequest("the body must be a JSON object with a model and an input")
    asked = given.get("input")
    texts = [asked] if isinstance(asked, str) else asked
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InvalidRequest("input must be a text or a list of texts; tokens are not taken here")
    if len(texts) > _MOST:
        raise InvalidRequest(f"input has {len(texts)} texts; at most {_MOST} go into a request")
    if any(not text for text in texts):
        raise InvalidRequest("input holds an empty text, which has no vector")
    if given.get("dimensions") is not None:
        raise InvalidRequest("dimensions is not offered: the vectors are as long as the model makes them")
    form = given.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise InvalidRequest(f"encoding_format {form!r} must be float or base64")
    return EmbeddingRequest(given["model"], tuple(texts), form == "base64")


def gives_vectors(version: LoadedVersion) -> bool:
    """Whether a version reads one text a row and answers a vector for each."""
    reads = [(spec.name, spec.datatype, tuple(spec.shape)) for spec in version.inputs] == [(TEXT, "BYTES", (-1,))]
    first = version.outputs[0] if version.outputs else None
    labelled = any(spec.name == "label" for spec in version.outputs)
    return reads and first is not None and first.datatype == "FP32" and len(first.shape) == 2 and not labelled


class EmbeddingJob(InferJob):
    """The texts as an inference request, whose raw answer becomes OpenAI's."""

    __slots__ = ("_asked", "_connection", "_refuse", "_version", "_who")

    def __init__(
        self,
        connection: HttpConnection,
        asked: EmbeddingRequest,
        version: LoadedVersion,
        refuse: Refuser,
        who: Principal | None,
    ) -> None:
        texts = {"name": TEXT, "datatype": "BYTES", "shape": [len(asked.texts)], "data": list(asked.texts)}
        wanted = {"name": version.outputs[0].name, "parameters": {"binary_data": True}}
        body = orjson.dumps({"inputs": [texts], "outputs": [wanted]})
        super().__init__(body, packing=PLAIN | COUNT_TOKENS, began=time.monotonic())
        self._connection, self._asked, self._version = connection, asked, version
        self._refuse, self._who = refuse, who
        self.notes = connection.notes

    @property
    def wanted(self) -> bool:
        return not self._connection.gone

    def deliver(self, answered: Answered) -> None:
        body = bytes(answered.body)
        if answered.status != 200:
            error = ServingError(orjson.loads(body)["error"])
            error.status = answered.status
            self._refuse(self._connection, error)
            return
        rows = len(self._asked.texts)
        raw, count = memoryview(body)[answered.json_bytes : -4], int.from_bytes(body[-4:], "little")
        self._version.stats.read(count)
        if self._who is not None:
            self._who.owe(count)
        size = len(raw) // rows
        vectors = (raw[n * size : (n + 1) * size] for n in range(rows))
        told = [{"object": "embedding", "index": n, "embedding": self._written(v)} for n, v in enumerate(vectors)]
        usage = {"prompt_tokens": count, "total_tokens": count}
        answer = {"object": "list", "data": told, "model": self._asked.model, "usage": usage}
        self._connection.answer(200, orjson.dumps(answer))

    def _written(self, vector: memoryview) -> str | list[float]:
        """A vector by the bytes of its float32, which the front reads without numpy."""
        return (
            base64.b64encode(vector).decode()
            if self._asked.packed
            else [*struct.unpack(f"<{len(vector) // 4}f", vector)]
        )
