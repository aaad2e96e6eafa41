"""JSON bodies of requests: bounded before they become memory, and quoted harmlessly where they are wrong."""

from __future__ import annotations

from typing import Any

import orjson

from serving.exceptions import InvalidRequest

_MOST_NESTED = 1 << 18
"""Lists and objects in a body, at most: each is memory before anything about it is checked."""


def read_object(body: bytes | memoryview) -> dict[str, Any]:
    """The JSON object in a request body; InvalidRequest if it is none. Nesting beyond 1024 levels is refused."""
    text = bytes(body)
    if len(text) > _MOST_NESTED and text.count(b"[") + text.count(b"{") > _MOST_NESTED:
        raise InvalidRequest(
            f"the body has more than {_MOST_NESTED} lists and objects; send flat data, or fewer samples per request"
        )
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body must be a JSON object, got {shown(value)}")
    return value


def shown(value: Any) -> str:
    """A client's value in an error text: short, and harmless in a log."""
    text = ascii(value[:80] if isinstance(value, str) else value) if isinstance(value, str | int | float | None) else ""
    if isinstance(value, list) and len(value) <= 8 and all(isinstance(v, int | float | str) for v in value):
        text = ascii(value)
    if not text:
        return f"a {'list' if isinstance(value, list) else 'object'}"
    return text if len(text) <= 80 else f"{text[:77]}..."
