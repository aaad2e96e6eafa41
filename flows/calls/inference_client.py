"""``winnow.Client`` and ``winnow.AsyncClient``: predictions of served models, as numpy arrays."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar, Unpack

import httpx

from flows.calls.inference_talk import InferenceTalk, ModelMetadata, Pause, Question, Talk, Wants
from model_registry.endpoint_client import EndpointError
from serving.sample_values import only_row
from serving.tensors import Array

_DEFAULT = "http://127.0.0.1:8080"
_LOCAL = {"127.0.0.1", "localhost", "::1"}
_KEEP_SECONDS = 60.0
"""How long an idle connection is kept: less than the endpoint keeps it."""
T = TypeVar("T")


class Client:
    """Asks an endpoint; tensors travel in binary. It may be used from several threads, and as a context manager.

    A request on a connection that the server had closed is sent once more; so is one that was refused with 429 or 503,
    after the pause that the endpoint asks for, where that is no longer than ``timeout``.

    Args:
        url: of the endpoint; by default WINNOW_ENDPOINT, or ``http://127.0.0.1:8080``.
        key: of ``winnow keys add``, one that may infer and read; by default WINNOW_KEY, or none.
        timeout: seconds to wait for an answer.
        tls: for a certificate that this machine does not trust by itself, or one of the client's own.

    Raises:
        EndpointError: the URL is none.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout: float = 30.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._http = httpx.Client(**_settings(url, key, timeout, tls))
        self._talk, self._timeout = InferenceTalk(timeout), timeout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def models(self) -> list[str]:
        """Names of the models that the endpoint has."""
        return self._run(self._talk.models())

    def metadata(self, model: str, version: int | None = None) -> ModelMetadata:
        """What a model takes and answers: ``name``, ``versions``, ``inputs`` and ``outputs``.

        Args:
            model: its name.
            version: a loaded one; None = the one that has the traffic.

        Raises:
            EndpointError: ``NotServed``: there is no such model or version.
        """
        return self._run(self._talk.metadata(model, version))

    def ready(self, model: str | None = None) -> bool:
        """Whether the model answers, or without one all that the endpoint has; False for one that it has not.

        Raises:
            EndpointError: ``EndpointUnreachable``: nobody answers; ``KeyRefused``: not to this key.
        """
        return self._run(self._talk.ready(model))

    def predict(self, model: str, sample: Any, version: int | None = None, **wants: Unpack[Wants]) -> dict[str, Any]:
        """The outputs for one sample, by name.

        Args:
            model: its name.
            sample: one row without the batch dimension: an array, tensor or list, or a mapping of them by input name. A
                missing value is NaN or None, where the model was trained with some.
            version: a loaded one; None = the one that has the traffic.
            wants: of the variant that answers: ``variant``, ``min_accuracy``, ``max_latency_ms``.

        Returns:
            A scalar or an array per output; labels are text.

        Raises:
            InvalidRequest: it does not fit the model's inputs; names the input and its shape.
            EndpointError: ``NotServed``, ``KeyRefused``, ``EndpointBusy``, ``EndpointRefused`` by the status of the
                answer, ``EndpointUnreachable`` without one.
        """
        return only_row(self._run(self._talk.predict(model, sample, version, one=True, wants=wants)))

    def predict_batch(
        self,
        model: str,
        samples: Any,
        version: int | None = None,
        outputs: Sequence[str] | None = None,
        timeout: float | None = None,
        **wants: Unpack[Wants],
    ) -> dict[str, Array]:
        """The outputs for N samples, by name, each [N, ...]; labels are an array of text.

        Args:
            model: its name.
            samples: an array [N, ...], tensor, list of rows or data frame of numbers, or a mapping by input name.
            version: a loaded one; None = the one that has the traffic.
            outputs: names of those that are wanted; None = all.
            timeout: seconds after which the endpoint need not answer any more.
            wants: as for :meth:`predict`.

        Raises:
            InvalidRequest, EndpointError: as :meth:`predict`.
        """
        asked = self._talk.predict(model, samples, version, one=False, outputs=outputs, timeout=timeout, wants=wants)
        return self._run(asked)

    def infer(self, model: str, request: Mapping[str, Any], version: int | None = None) -> dict[str, Array]:
        """The outputs for a request of the Open Inference Protocol V2, which is sent as it is.

        Args:
            model: its name.
            request: the JSON object of the protocol, with ``inputs``.
            version: a loaded one; None = the one that has the traffic.

        Raises:
            InvalidRequest, EndpointError: as :meth:`predict`.
        """
        return self._run(self._talk.infer(model, request, version))

    def _run(self, talk: Talk[T]) -> T:
        heard: httpx.Response | httpx.HTTPError | None = None
        try:
            while True:
                step = talk.send(heard)
                heard = self._do(step)
        except StopIteration as end:
            found: T = end.value
            return found

    def _do(self, step: Question | Pause) -> httpx.Response | httpx.HTTPError | None:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        try:
            return self._http.request(step.method, step.path, **_sent(step, self._timeout))
        except httpx.HTTPError as error:
            return error


class AsyncClient:
    """:class:`Client` for asyncio: the same calls, each awaited; ``async with`` closes it."""

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout: float = 30.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(**_settings(url, key, timeout, tls))
        self._talk, self._timeout = InferenceTalk(timeout), timeout

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def models(self) -> list[str]:
        """As :meth:`Client.models`."""
        return await self._run(self._talk.models())

    async def metadata(self, model: str, version: int | None = None) -> ModelMetadata:
        """As :meth:`Client.metadata`."""
        return await self._run(self._talk.metadata(model, version))

    async def ready(self, model: str | None = None) -> bool:
        """As :meth:`Client.ready`."""
        return await self._run(self._talk.ready(model))

    async def predict(
        self, model: str, sample: Any, version: int | None = None, **wants: Unpack[Wants]
    ) -> dict[str, Any]:
        """As :meth:`Client.predict`."""
        return only_row(await self._run(self._talk.predict(model, sample, version, one=True, wants=wants)))

    async def predict_batch(
        self,
        model: str,
        samples: Any,
        version: int | None = None,
        outputs: Sequence[str] | None = None,
        timeout: float | None = None,
        **wants: Unpack[Wants],
    ) -> dict[str, Array]:
        """As :meth:`Client.predict_batch`."""
        asked = self._talk.predict(model, samples, version, one=False, outputs=outputs, timeout=timeout, wants=wants)
        return await self._run(asked)

    async def infer(self, model: str, request: Mapping[str, Any], version: int | None = None) -> dict[str, Array]:
        """As :meth:`Client.infer`."""
        return await self._run(self._talk.infer(model, request, version))

    async def _run(self, talk: Talk[T]) -> T:
        heard: httpx.Response | httpx.HTTPError | None = None
        try:
            while True:
                step = talk.send(heard)
                heard = await self._do(step)
        except StopIteration as end:
            found: T = end.value
            return found

    async def _do(self, step: Question | Pause) -> httpx.Response | httpx.HTTPError | None:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        try:
            return await self._http.request(step.method, step.path, **_sent(step, self._timeout))
        except httpx.HTTPError as error:
            return error


def _settings(url: str | None, key: str | None, timeout: float, tls: ssl.SSLContext | None) -> dict[str, Any]:
    """What httpx is set up with."""
    asked = url or os.environ.get("WINNOW_ENDPOINT") or _DEFAULT
    key = key or os.environ.get("WINNOW_KEY")
    try:
        base = httpx.URL(asked)
    except httpx.InvalidURL as error:
        raise EndpointError(f"{asked!r} is no URL of an endpoint: {error}") from error
    if base.scheme not in ("http", "https") or not base.host:
        raise EndpointError(f"{asked!r} is no URL of an endpoint, such as {_DEFAULT}")
    if key is not None and not (key.isascii() and key.isprintable()):
        raise EndpointError("the key holds characters that no key has; winnow keys add makes one")
    if tls is None:  # reading this machine's certificates takes time, which http does not need
        tls = ssl.create_default_context() if base.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return {
        "base_url": base,
        "headers": {} if key is None else {"authorization": f"Bearer {key}"},
        "timeout": timeout,
        "verify": tls,
        "trust_env": base.host not in _LOCAL,  # loopback never goes through a proxy
        "limits": httpx.Limits(keepalive_expiry=_KEEP_SECONDS),
    }


def _sent(question: Question, timeout: float) -> dict[str, Any]:
    """The rest of a request, as httpx wants it."""
    seconds = timeout if question.seconds is None else question.seconds
    return {
        "content": question.content,
        "headers": dict(question.headers or {}),
        "timeout": httpx.Timeout(seconds, connect=min(5.0, seconds)),
    }
