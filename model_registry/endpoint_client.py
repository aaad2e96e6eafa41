"""Client of the serving endpoint: its admin listener (load, route, unload) and its data plane (infer)."""

from __future__ import annotations

import math
import os
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, Self

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from model_registry.datatypes import NUMPY_NAMES
from model_registry.variant import TensorSpec
from model_registry.variant_set import SetMember

Array = NDArray[Any]


class EndpointError(Exception):
    """Base of what the endpoint's client raises."""


class EndpointUnreachable(EndpointError, ConnectionError):
    """The endpoint does not answer; start it with ``winnow up``."""


class EndpointRefused(EndpointError):
    """The endpoint answered with an error; ``status`` is its HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        self.status = status
        super().__init__(message)

    @property
    def may_pass(self) -> bool:
        """Whether trying again may help (the endpoint's own store is out of reach, for example)."""
        return self.status >= 500


class AdminAnswer(BaseModel):
    """Part of an answer; an endpoint may say more than we read."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class HeldVersion(AdminAnswer):
    """One version that the endpoint holds."""

    version: int
    digest: str
    state: str


class ServedModel(AdminAnswer):
    """What the endpoint holds of a model; ``serving`` takes the traffic."""

    model: str
    serving: int | None = None
    versions: tuple[HeldVersion, ...] = ()

    @property
    def answers(self) -> bool:
        """Whether the version with the traffic is ready."""
        return any(v.version == self.serving and v.state == "ready" for v in self.versions)

    def serves(self, version: int, digest: str) -> bool:
        """Whether this variant takes the traffic, under this number."""
        return self.serving == version and self.digest_of(version) == digest

    def digest_of(self, version: int | None) -> str | None:
        """Digest of a loaded version; None if it is not loaded."""
        return next((v.digest for v in self.versions if v.version == version), None)


class Endpoint:
    """One endpoint. ``data`` and ``admin`` are its two base URLs, ``token`` the admin's bearer token."""

    def __init__(self, data: str, admin: str, token: str) -> None:
        self.url = data.rstrip("/")
        self._admin = admin.rstrip("/")
        secure = any(url.startswith("https:") for url in (data, admin))  # else reading the certificates is for nothing
        trusted = ssl.create_default_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._client = httpx.Client(timeout=30, trust_env=False, verify=trusted)  # loopback never goes through a proxy
        self._headers = {"Authorization": f"Bearer {token}"}

    @classmethod
    def from_environment(cls) -> Endpoint:
        """The endpoint of WINNOW_ENDPOINT, WINNOW_ENDPOINT_ADMIN and WINNOW_ADMIN_TOKEN."""
        names = ("WINNOW_ENDPOINT", "WINNOW_ENDPOINT_ADMIN", "WINNOW_ADMIN_TOKEN")
        missing = [name for name in names if not os.environ.get(name)]
        if missing:
            raise EndpointError(f"{', '.join(missing)} not set; start the stack with `winnow up`")
        return cls(*(os.environ[name] for name in names))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    # -- admin --------------------------------------------------------------------------------------------------
    def models(self) -> list[ServedModel]:
        """What the endpoint holds."""
        return [ServedModel.model_validate(m) for m in self.admin_call("GET", "/admin/models")["models"]]

    def model(self, model: str) -> ServedModel:
        """What the endpoint holds of one model; empty for an unknown one."""
        return next((m for m in self.models() if m.model == model), ServedModel(model=model))

    def load(self, model: str, version: int, digest: str, *, seconds: float = 120, spare: bool = False) -> None:
        """Load a version beside the serving one: fetched, verified against the digest, warmed. Harmless if it is.

        Args:
            spare: with one engine, until it is asked for something.
        """
        asked = {"digest": digest, "spare": spare}
        self.admin_call("PUT", f"/admin/models/{model}/versions/{version}", asked, seconds)

    def serve_set(self, model: str, members: Sequence[SetMember]) -> None:
        """Serve these loaded versions as one set; none: the one with the traffic alone."""
        asked = {"members": [member.model_dump(mode="json") for member in members]}
        self.admin_call("PUT", f"/admin/models/{model}/set", asked)

    def route(self, model: str, version: int | None) -> int | None:
        """Give the traffic to a loaded version, or to none; returns the version that had it."""
        wanted = None if version is None else str(version)
        answer = self.admin_call("POST", f"/admin/models/{model}/traffic", {"version": wanted})
        previous = answer.get("previous")
        return None if previous is None else int(previous)

    def unload(self, model: str, version: int) -> None:
        """Drop a version once its requests are answered; harmless if it is not loaded."""
        try:
            self.admin_call("DELETE", f"/admin/models/{model}/versions/{version}")
        except EndpointRefused as error:
            if error.status != 404:
                raise

    # -- data plane ---------------------------------------------------------------------------------------------
    def infer(self, model: str, version: int | None, inputs: Mapping[str, Array], specs: tuple[TensorSpec, ...]) -> Any:
        """Outputs by name for a batch of inputs; ``version`` None asks the one that has the traffic."""
        datatypes = {spec.name: spec.datatype for spec in specs}
        body = {
            "inputs": [
                {
                    "name": name,
                    "datatype": datatypes[name],
                    "shape": list(array.shape),
                    "data": [_json_value(v) for v in array.ravel().tolist()],
                }
                for name, array in inputs.items()
            ]
        }
        where = f"/v2/models/{model}" + (f"/versions/{version}" if version is not None else "") + "/infer"
        answer = self._call("POST", self.url + where, body, 30, self._headers)
        return {output["name"]: _array(output) for output in answer["outputs"]}

    # -- plumbing -----------------------------------------------------------------------------------------------
    def admin_call(self, method: str, path: str, body: Any = None, seconds: float = 30) -> dict[str, Any]:
        """What the admin listener answers.

        Raises:
            EndpointUnreachable, EndpointRefused: it does not, or with an error.
        """
        return self._call(method, self._admin + path, body, seconds, self._headers)

    def _call(
        self, method: str, url: str, body: Any, seconds: float, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        try:
            answer = self._client.request(
                method, url, json=body, headers=headers, timeout=httpx.Timeout(seconds, connect=5)
            )
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            raise EndpointUnreachable(
                f"endpoint: {method} {url}: {why}; `winnow status` tells whether it runs"
            ) from error
        if answer.is_success:
            found: dict[str, Any] = answer.json() if answer.content else {}
            return found
        try:
            text = answer.json()["error"]
        except (ValueError, KeyError, TypeError):
            text = answer.text[:200]
        raise EndpointRefused(f"endpoint: {method} {url}: {answer.status_code}: {text}", answer.status_code)


def _json_value(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None  # a missing value, as null
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _array(output: dict[str, Any]) -> Array:
    datatype = output["datatype"]
    data = [float("nan") if value is None else value for value in _flat(output["data"])]  # NaN travels as null
    return np.array(data, dtype=NUMPY_NAMES[datatype]).reshape(output["shape"])


def _flat(data: Any) -> list[Any]:
    return [value for item in data for value in _flat(item)] if isinstance(data, list) else [data]
