"""How to ask the endpoint, told by the endpoint: ``/openapi.json`` for programs and ``/docs`` for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from serving.front.api_document import describe_api
from serving.front.api_page import PAGE_LINES, api_page
from serving.front.http_connection import HttpConnection
from serving.front.http_head import RequestHead
from serving.front.http_service import reply
from serving.key_ring import KeyRing
from serving.limits import RequestLimits
from serving.rollout import Rollout


class ApiGuide:
    """Answers with the description of the data plane as it is now.

    Attributes:
        operations: method and path of what is described.
    """

    def __init__(self, rollout: Rollout, limits: RequestLimits, keys: KeyRing, server_version: str) -> None:
        self._rollout, self._limits, self._keys, self._version = rollout, limits, keys, server_version
        self.operations: Iterable[tuple[str, str]] = ()

    def as_json(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        """Answer with the OpenAPI document."""
        reply(connection, self._document())

    def as_page(self, connection: HttpConnection, head: RequestHead, body: bytes) -> None:
        """Answer with the page."""
        connection.answer(200, api_page(self._document()), PAGE_LINES, b"text/html; charset=utf-8")

    def _document(self) -> dict[str, Any]:
        keyed, models = self._keys.wanted, self._rollout.models.items()
        # Where keys are asked for, what there is and what it takes is for those that have one.
        shown = {} if keyed else {name: m.versions[m.serving].inputs for name, m in models if m.serving is not None}
        return describe_api(self.operations, self._limits, self._version, shown, keyed=keyed)
