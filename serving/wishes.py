"""What a request wants of the variant that answers it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from serving.exceptions import InvalidRequest
from serving.json_body import shown

HEADERS = {
    b"winnow-variant": "variant",
    b"winnow-min-accuracy": "min_accuracy",
    b"winnow-max-latency-ms": "max_latency_ms",
}
"""Headers that say the same as the parameters, which are found without reading the body."""
WISHES = frozenset(HEADERS.values())
"""Parameters of a request."""


class Wishes(NamedTuple):
    """``variant``: version number, name, or at least 8 digits of the digest; ``min_accuracy``: least value of the
    metric that was measured; ``max_latency_ms``: within which it should be answered. None: whatever it is."""

    variant: str | None = None
    min_accuracy: float | None = None
    max_latency_ms: float | None = None

    def and_(self, others: Wishes) -> Wishes:
        """Both; the others where they say the same thing."""
        said = {name: value for name, value in others._asdict().items() if value is not None}
        return self._replace(**said)


def wishes_of_parameters(parameters: Mapping[str, Any]) -> Wishes:
    """From the parameters of a request, or from its headers as text.

    Raises:
        InvalidRequest: one cannot be; names it.
    """
    variant = parameters.get("variant")
    if variant is not None and (not isinstance(variant, str) or not 0 < len(variant) <= 200):
        raise InvalidRequest(
            f"parameter 'variant' must be a version, a variant's name or its digest, as text, got {shown(variant)}"
        )
    return Wishes(
        variant,
        _number(parameters, "min_accuracy", positive=False),
        _number(parameters, "max_latency_ms", positive=True),
    )


def wishes_of_headers(headers: Mapping[bytes, bytes]) -> Wishes | None:
    """None where no header says any; raises InvalidRequest."""
    found: dict[str, Any] = {}
    for header, name in HEADERS.items():
        if (value := headers.get(header)) is not None:
            text = value.decode("latin-1")
            found[name] = text if name == "variant" else _as_number(text)
    return wishes_of_parameters(found) if found else None


def as_bytes(wishes: Wishes) -> bytes:
    """As the engine, which alone reads bodies, sends them to the front."""
    return orjson.dumps(wishes._asdict())


def wishes_from_bytes(data: bytes | memoryview) -> Wishes:
    """The reverse."""
    return Wishes(**orjson.loads(data))


def _number(parameters: Mapping[str, Any], name: str, *, positive: bool) -> float | None:
    value = parameters.get(name)
    if value is None:
        return None
    fits = type(value) in (int, float) and math.isfinite(value) and (value > 0 or not positive)
    if not fits:
        rule = "a number above 0" if positive else "a number"
        raise InvalidRequest(f"parameter {name!r} must be {rule}, got {shown(value)}")
    return float(value)


def _as_number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
