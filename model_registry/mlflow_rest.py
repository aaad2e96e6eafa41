"""MLflow's server over HTTP. Importing MLflow's own client takes longer than all that a run has to say to it."""

from __future__ import annotations

import json
import math
import mimetypes
import os
import ssl
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from model_registry.authorization import mlflow_authorization

ANSWER_SECONDS = 30.0
"""How long the server may take for an answer: writing a run takes it a second, and one that hangs is not waited for."""
FILE_SECONDS = 120.0
"""The same for a file, which it passes on."""
_CONNECT_SECONDS = 5.0
_IDLE_SECONDS = 3.0  # less than the server keeps a silent connection: it must not hang up on a request of ours
_PROXIED = "mlflow-artifacts:/"


class RegistryError(Exception):
    """Base of what the registry raises; also MLflow's own refusals, ``code`` as MLflow names them."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class RegistryUnavailable(RegistryError, ConnectionError):
    """MLflow cannot be reached or answers 5xx. It may pass: steps are tried again."""


class RegistryHung(RegistryError):
    """MLflow takes requests and does not answer them. Nobody waits for it a second time."""


class MlflowServer:
    """One server, by its URL; who asks is said by MLFLOW_TRACKING_TOKEN or _USERNAME and _PASSWORD, as MLflow does.

    Safe to share between threads.
    """

    def __init__(self, uri: str, seconds: float = ANSWER_SECONDS) -> None:
        if urlsplit(uri).scheme not in {"http", "https"}:
            raise RegistryError(f"MLFLOW_TRACKING_URI is {uri!r}, and Winnow needs a server: http://... or https://...")
        self.uri, self._seconds = uri, seconds

    def get(self, path: str, **query: str | int) -> dict[str, Any]:
        """``GET`` below ``api/2.0/mlflow/``.

        Raises:
            RegistryUnavailable, RegistryHung, RegistryError: as for all methods here.
        """
        return self._ask("GET", f"mlflow/{path}", params=query)

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """``POST`` of a JSON object; numbers that JSON has no name for are written as MLflow reads them."""
        return self.send("POST", path, body)

    def send(self, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The same with another method."""
        return self._ask(
            method,
            f"mlflow/{path}",
            content=json.dumps(_encodable(body), allow_nan=False).encode(),
            headers={"Content-Type": "application/json"},
        )

    def every(self, path: str, name: str, **body: Any) -> list[dict[str, Any]]:
        """All items of a search, page by page."""
        found: list[dict[str, Any]] = []
        token = ""
        while True:
            page = self.post(path, **body, **({"page_token": token} if token else {}))
            found += page.get(name, [])
            token = page.get("next_page_token", "")
            if not token:
                return found

    def takes_files_for(self, artifacts: str) -> bool:
        """Whether the server passes files on to that artifact URI; else they go there without it."""
        return artifacts.startswith(_PROXIED) and not artifacts.startswith(f"{_PROXIED}/")

    def put_file(self, artifacts: str, name: str, content: bytes | Path) -> None:
        """Write a file below an artifact URI that the server passes files on to."""
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        path = f"mlflow-artifacts/artifacts/{artifacts.removeprefix(_PROXIED)}/{name}"
        if isinstance(content, bytes):
            self._ask("PUT", quote(path), FILE_SECONDS, content=content, headers={"Content-Type": kind})
            return
        with content.open("rb") as stream:
            headers = {"Content-Type": kind, "Content-Length": str(content.stat().st_size)}
            chunks = iter(lambda: stream.read(1 << 20), b"")
            self._ask("PUT", quote(path), FILE_SECONDS, content=chunks, headers=headers)

    def _ask(self, method: str, path: str, seconds: float | None = None, **request: Any) -> dict[str, Any]:
        request["timeout"] = httpx.Timeout(seconds or self._seconds, connect=_CONNECT_SECONDS)
        request["headers"] = mlflow_authorization(os.environ) | request.get("headers", {})
        hint = "`winnow status` tells whether it runs"
        try:
            answer = _client(self.uri.startswith("https:")).request(method, f"{self.uri}/api/2.0/{path}", **request)
        except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
            raise RegistryHung(
                f"MLflow at {self.uri}: {method} {path} was not answered within {seconds or self._seconds:g} s; "
                "`winnow logs mlflow` may say why"
            ) from error
        except httpx.TransportError as error:
            raise RegistryUnavailable(f"MLflow at {self.uri}: {error or type(error).__name__}; {hint}") from error
        try:
            found = json.loads(answer.content or b"{}")
        except ValueError:
            found = None
        if answer.is_success and isinstance(found, dict):
            return found
        said = found if isinstance(found, dict) else {"message": answer.text[:500]}  # a proxy's page, for instance
        code = str(said.get("error_code", ""))
        text = f"MLflow at {self.uri}: {method} {path} was answered {answer.status_code} {code}: {said.get('message')}"
        if answer.status_code >= 500 or answer.status_code == 429 or code == "RESOURCE_EXHAUSTED":
            raise RegistryUnavailable(f"{text}; {hint}", code)
        raise RegistryError(text, code)


@lru_cache(maxsize=2)
def _client(secure: bool) -> httpx.Client:
    """The connections of this process. Reading the certificates takes longer than a request: only where needed."""
    authorities = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or os.environ.get("REQUESTS_CA_BUNDLE")
    trusted = ssl.create_default_context(cafile=authorities) if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return httpx.Client(verify=trusted, limits=httpx.Limits(keepalive_expiry=_IDLE_SECONDS))


def _encodable(value: Any) -> Any:
    """MLflow reads NaN and the infinities as text: ``"NaN"``, ``"Infinity"``."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _encodable(item) for key, item in value.items()}
    return [_encodable(item) for item in value] if isinstance(value, list | tuple) else value


def pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags or parameters as MLflow's requests hold them."""
    return [{"key": key, "value": value} for key, value in values.items()]


def by_key(listed: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The reverse: tags or parameters of an answer; an empty value is left out of it."""
    return {item["key"]: item.get("value", "") for item in listed}
