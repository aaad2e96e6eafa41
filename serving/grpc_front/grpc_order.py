"""What the endpoint tells its gRPC process at the start, and how the two speak afterwards.

They share a SOCK_SEQPACKET socket. The endpoint sends one :class:`GrpcOrder`. The process answers ``{"ready": true}``
or ``{"error": text}``; each ``{"connect": true}`` after that carries a descriptor, the endpoint's end of one more HTTP
connection. The process ends when the endpoint sends no more, because it stops or because it died.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass

import orjson

from serving.limits import RequestLimits

LONGEST_MESSAGE = 1 << 16


@dataclass(frozen=True)
class GrpcOrder:
    """Where gRPC is served, and within which limits; files are PEM, empty where there are none."""

    host: str
    port: int
    limits: RequestLimits
    certificate: str = ""
    certificate_key: str = ""
    client_authorities: str = ""

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def to_message(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_message(cls, message: bytes) -> GrpcOrder:
        said = orjson.loads(message)
        return cls(**{**said, "limits": RequestLimits(**said["limits"])})


def grpc_is_installed() -> bool:
    """Whether the extra ``grpc`` is there; imports none of it."""
    try:
        return all(importlib.util.find_spec(name) is not None for name in ("grpc", "google.protobuf"))
    except ModuleNotFoundError:  # no `google` at all
        return False
