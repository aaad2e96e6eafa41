"""What the data plane counts of inference requests beside what each version counts: who sent them, which were shed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container

from serving.exceptions import NotReady, Overloaded, ServingError, TooManyRequests
from serving.front.http_connection import HttpConnection
from serving.front.http_head import RequestHead
from serving.front.http_routes import Handler, Route
from serving.key_ring import Principal

MOST_KEYS = 50
"""Keys with a count of their own; the others share one, so that the metrics stay small."""
_REASONS: tuple[tuple[type[ServingError], str], ...] = (
    (Overloaded, "queue"),
    (TooManyRequests, "rate"),
    (NotReady, "not ready"),
)


class RequestCounts:
    """Counts inference requests.

    Args:
        models: names that may have counts of their own: anybody may ask for any other name.

    Attributes:
        total: all that were complete.
        by_key: of each key, by its id and its name; both empty for requests without one, ``other`` for the rest.
        shed: refused with 503 or 429 before an engine had them, by model and reason.
    """

    def __init__(self, models: Container[str]) -> None:
        self._models = models
        self.total = 0
        self.by_key = Counter[tuple[str, str]]()
        self.shed = Counter[tuple[str, str]]()

    def counted(self, handler: Handler) -> Handler:
        """The handler of inference requests, whose requests and refusals are counted."""

        def handle(connection: HttpConnection, head: RequestHead, body: bytes) -> None:
            route: Route = head.route
            self._came(route.principal)
            try:
                handler(connection, head, body)
            except ServingError as error:
                self.refused(route.model, error)
                raise

        return handle

    def refused(self, model: str, error: ServingError) -> None:
        """A request was refused with this error; counted where that was to shed load."""
        for kind, reason in _REASONS:
            if isinstance(error, kind):
                self.shed[model if model in self._models else "", reason] += 1

    def _came(self, principal: Principal | None) -> None:
        self.total += 1
        who = ("", "") if principal is None else (principal.key.id, principal.key.name)
        if who not in self.by_key and len(self.by_key) >= MOST_KEYS:
            who = ("other", "")
        self.by_key[who] += 1
