"""The gRPC listener's process: ``python -m serving.grpc_front.grpc_process DESCRIPTOR``, started by the endpoint.

grpcio brings threads and a completion queue with it, and a large part of a call's CPU is its own: it shares a
process with nothing else. The synchronous server is used since it costs what the asyncio one does, and holds up better
on a busy machine.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import orjson

from serving.grpc_front.front_link import FrontLink
from serving.grpc_front.grpc_order import LONGEST_MESSAGE, GrpcOrder
from serving.grpc_front.grpc_service import GrpcService
from serving.telemetry.log_lines import configure_log
from serving.tls import Tls, TlsMisconfigured

_THREADS = 64
"""Calls that are under way at a time; each of them waits for an answer of the front."""
_HANDSHAKE_SECONDS, _SWEEP_SECONDS = 10.0, 1.0
_IDENTITY_ALONE = 1
"""The bit of the one compression that is taken: none."""
log = logging.getLogger("winnow.serving")


def main() -> None:
    """Serve until the endpoint sends no more, then let calls under way end."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to a whole group; the endpoint says when to end
        signal.signal(number, signal.SIG_IGN)
    configure_log()
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    order = GrpcOrder.from_message(control.recv(LONGEST_MESSAGE))
    service = GrpcService(FrontLink(control), order.limits)
    try:
        server = grpc_server(order, service)
    except (RuntimeError, TlsMisconfigured) as error:
        control.send(orjson.dumps({"error": str(error)}))
        sys.exit(1)
    server.start()
    control.send(b'{"ready":true}')
    control.settimeout(_SWEEP_SECONDS)
    while _goes_on(control):
        service.sweep()
    server.stop(order.limits.drain_seconds).wait()
    logging.shutdown()
    os._exit(0)  # threads whose calls were given up still wait for their answers


def _goes_on(control: socket.socket) -> bool:
    """False once the endpoint sends no more; comes back in time to look after the calls."""
    try:
        return bool(control.recv(LONGEST_MESSAGE))
    except TimeoutError:
        return True


def grpc_server(order: GrpcOrder, service: GrpcService) -> grpc.Server:
    """A server that listens where the order says, not yet started.

    Raises:
        RuntimeError: the address is taken.
        TlsMisconfigured: the certificate cannot be used.
    """
    limits = order.limits
    server = grpc.server(
        ThreadPoolExecutor(_THREADS, thread_name_prefix="grpc"),
        handlers=[service.handlers()],
        maximum_concurrent_rpcs=limits.pending,
        options=[
            ("grpc.so_reuseport", 0),  # else a second endpoint would share the port without a word
            ("grpc.max_receive_message_length", limits.body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", limits.head_bytes),
            ("grpc.absolute_max_metadata_size", limits.head_bytes),
            ("grpc.max_concurrent_streams", limits.pending),
            ("grpc.max_connection_idle_ms", int(1e3 * limits.idle_seconds)),
            ("grpc.server_handshake_timeout_ms", int(1e3 * _HANDSHAKE_SECONDS)),
            ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ALONE),
        ],
    )
    if order.certificate:
        server.add_secure_port(order.address, _credentials(order))
    else:
        server.add_insecure_port(order.address)
    return server


def _credentials(order: GrpcOrder) -> grpc.ServerCredentials:
    """Of files that are looked at for each connection, and read again when they were renewed."""
    first = _configuration(order)
    seen = _signature(order)

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal seen
        now = _signature(order)
        if now == seen:
            return None
        seen = now
        try:
            return _configuration(order)
        except TlsMisconfigured as error:
            log.error("the certificate stays as it was: %s", error)
            return None

    fetch: Callable[[], grpc.ServerCertificateConfiguration | None] = renewed
    return grpc.dynamic_ssl_server_credentials(
        first, fetch, require_client_authentication=bool(order.client_authorities)
    )


def _configuration(order: GrpcOrder) -> grpc.ServerCertificateConfiguration:
    clients = Path(order.client_authorities) if order.client_authorities else None
    certificate, key = Path(order.certificate), Path(order.certificate_key)
    Tls(certificate, key, clients)  # grpc would take a pair that does not fit, and fail each handshake
    roots = clients.read_bytes() if clients is not None else None
    return grpc.ssl_server_certificate_configuration([(key.read_bytes(), certificate.read_bytes())], roots)


def _signature(order: GrpcOrder) -> list[tuple[int, int]]:
    files = [Path(f) for f in (order.certificate, order.certificate_key, order.client_authorities) if f]
    return [(f.stat().st_mtime_ns, f.stat().st_ino) if f.exists() else (0, 0) for f in files]


if __name__ == "__main__":
    main()
