"""Traces: a span for each inference request, sent to an OpenTelemetry collector over HTTP (OTLP).

Everything is set by the standard variables (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME, ...),
which the SDK reads. Spans are made when a request has ended, in the thread of the watch and not on the loop.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serving.telemetry.request_notes import RequestMarks, RequestNotes

_LAST_SECONDS = 2.0
_ROUTE = "/v2/models/{model}/infer"
_ROUTE_OF_VERSION = "/v2/models/{model}/versions/{version}/infer"


class RequestSpans:
    """Makes the spans and has them sent; those that cannot be sent are lost, which the exporter logs."""

    def __init__(self, release: str) -> None:
        named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        resource = Resource.create({} if named else {SERVICE_NAME: "winnow"})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._exporter = OTLPSpanExporter()
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("winnow.serving", release)
        self._propagator = TraceContextTextMapPropagator()

    def write(self, ended: Sequence[RequestNotes]) -> None:
        since = time.time_ns() - time.monotonic_ns()
        for notes in ended:
            if notes.head is not None and notes.head.route is not None and notes.head.route.infers:
                self._write(notes, since)

    def close(self) -> None:
        late = threading.Timer(_LAST_SECONDS, self._exporter.shutdown)  # ends its waiting for a collector that is down
        late.daemon = True
        late.start()
        self._provider.shutdown()
        late.cancel()

    def _write(self, notes: RequestNotes, since: int) -> None:
        span = self._tracer.start_span(
            f"POST {_route(notes)}",
            context=self._parent(notes.marks),
            kind=SpanKind.SERVER,
            attributes=span_attributes(notes),
            start_time=since + int(1e9 * notes.began),
        )
        if notes.status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end(since + int(1e9 * notes.ended))

    def _parent(self, marks: RequestMarks | None) -> Context:
        if marks is None or not marks.parent:
            return Context()
        carrier = {"traceparent": marks.parent.decode()}
        if marks.state:
            carrier["tracestate"] = marks.state.decode()
        return self._propagator.extract(carrier, Context())


def span_attributes(notes: RequestNotes) -> dict[str, str | int | float]:
    """What a span says of an inference request; ``compute_ms`` is of the whole batch that it ran in."""
    assert notes.head is not None
    found: dict[str, str | int | float] = {
        "http.request.method": "POST",
        "http.route": _route(notes),
        "http.response.status_code": notes.status,
        "winnow.request_id": notes.id.decode(),
        "winnow.model": notes.head.route.model,
    }
    if notes.version:
        found["winnow.version"] = notes.version
    if notes.queued is not None and notes.computed is not None:
        found["winnow.queue_ms"] = round(1e3 * notes.queued, 4)
        found["winnow.compute_ms"] = round(1e3 * notes.computed, 4)
        found["winnow.batch.rows"], found["winnow.batch.requests"] = notes.rows, notes.batched
    return found


def _route(notes: RequestNotes) -> str:
    assert notes.head is not None
    return _ROUTE_OF_VERSION if notes.head.route.version else _ROUTE
