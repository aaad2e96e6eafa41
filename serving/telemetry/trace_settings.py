"""Whether traces are wanted, by OpenTelemetry's standard variables; imports none of it."""

from __future__ import annotations

import os

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"


class TracesMisconfigured(Exception):
    """Traces are wanted in a way that there is none for; names the variable and what to set."""


def traces_are_wanted() -> bool:
    """Whether a collector is named, and neither the SDK nor its traces are switched off.

    Raises:
        TracesMisconfigured: they are to be sent otherwise than over HTTP.
    """
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    if off or not any(os.environ.get(name) for name in _ENDPOINTS):
        return False
    for name in _PROTOCOLS:
        if protocol := os.environ.get(name):
            if protocol != _PROTOCOL:
                raise TracesMisconfigured(f"{name} is {protocol!r}; traces are sent as {_PROTOCOL} alone: set that")
            break  # the one for traces counts for more
    return True
