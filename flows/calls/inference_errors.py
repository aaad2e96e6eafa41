"""What :class:`winnow.Client` raises when the endpoint says no, by the status of its answer."""

from __future__ import annotations

import math

import httpx

from model_registry.endpoint_client import EndpointRefused
from serving.exceptions import InvalidRequest


class RequestInvalid(EndpointRefused, InvalidRequest):
    """The endpoint takes the request for wrong (400): it does not fit the model, or breaks the protocol."""


class KeyRefused(EndpointRefused):
    """The key is missing, unknown or has expired (401), or may not do this (403); see ``winnow keys list``."""


class NotServed(EndpointRefused):
    """The endpoint has no such model or version (404)."""


class EndpointBusy(EndpointRefused):
    """It cannot answer now, and may soon (429, 503); ``retry_after``: seconds to wait, as it said, or NaN."""

    retry_after = math.nan


_BY_STATUS: dict[int, type[EndpointRefused]] = {
    400: RequestInvalid,
    401: KeyRefused,
    403: KeyRefused,
    404: NotServed,
    429: EndpointBusy,
    503: EndpointBusy,
}


def refusal_of(response: httpx.Response) -> EndpointRefused:
    """The error that an answer other than 200 stands for."""
    try:
        text = response.json()["error"]
    except (ValueError, KeyError, TypeError):  # something else than an endpoint of ours, a proxy perhaps
        text = response.text[:200]
    kind = _BY_STATUS.get(response.status_code, EndpointRefused)
    error = kind(f"the endpoint answered {response.status_code}: {text}", response.status_code)
    if isinstance(error, EndpointBusy):
        error.retry_after = retry_after(response)
    return error


def retry_after(response: httpx.Response) -> float:
    """Seconds after which to ask again; NaN where the answer gives none (or a date, which no endpoint of ours does)."""
    said = response.headers.get("retry-after", "")
    return float(said) if said.isascii() and said.isdigit() and len(said) < 10 else math.nan
