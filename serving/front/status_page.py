"""``/admin``: what the endpoint does, live, as a page that a browser signs in to; and the JSON that it asks for."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from serving.front.http_connection import HttpConnection
from serving.front.http_head import RequestHead

_PAGE = Path(__file__).with_suffix(".html")
_NO_STORE = b"cache-control: no-store\r\n"


class StatusPage:
    """Handlers of the page and of its JSON.

    Args:
        status: what the endpoint does now; of everything that is counted the counts since its start.
    """

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status
        self._page, self._lines = status_page()

    def as_page(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        connection.answer(200, self._page, self._lines, b"text/html; charset=utf-8")

    def as_json(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        connection.answer(200, orjson.dumps(self._status()), _NO_STORE)


def status_page() -> tuple[bytes, bytes]:
    """The page, and its header lines: only its own script and style run, and it asks nobody but who served it."""
    page = _PAGE.read_bytes()
    policy = (
        f"content-security-policy: default-src 'none'; style-src {_hash(page, 'style')}; "
        f"script-src {_hash(page, 'script')}; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'\r\nx-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\n"
    )
    return page, policy.encode() + _NO_STORE


def _hash(page: bytes, tag: str) -> str:
    """The source expression of the one element of this kind."""
    (text,) = re.findall(f"<{tag}>(.*?)</{tag}>".encode(), page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
