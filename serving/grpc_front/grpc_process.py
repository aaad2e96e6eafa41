"""The gRPC listener's process: ``python -m serving.grpc_front.grpc_process DESCRIPTOR``, started by the endpoint.

grpcio brings threads and a completion queue with it, and a large part of a call's CPU is its own: it shares a
process with nothing else. Its asyncio server is used: no thread waits for another's lock.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import grpc.aio
import orjson

from serving.event_loop import loop_factory
from serving.grpc_front.front_link import FrontLink
from serving.grpc_front.grpc_order import LONGEST_MESSAGE, GrpcOrder
from serving.grpc_front.grpc_service import GrpcService
from serving.telemetry.log_lines import configure_log
from serving.tls import Tls, TlsMisconfigured

_HANDSHAKE_SECONDS = 10.0
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
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            runner.run(_serve(control, order))
        except (RuntimeError, TlsMisconfigured) as error:
            control.send(orjson.dumps({"error": str(error)}))
            sys.exit(1)
        logging.shutdown()
        os._exit(0)  # a message may still be turned round in a thread


async def _serve(control: socket.socket, order: GrpcOrder) -> None:
    """As :func:`main`; raises what :func:`grpc_server` raises, and RuntimeError where the server ends by itself."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    control.setblocking(False)

    def hear() -> None:
        try:
            said = control.recv(LONGEST_MESSAGE)
        except BlockingIOError:
            return
        except OSError:  # the endpoint died with something unread
            said = b""
        if not said:
            over.set()

    server = grpc_server(order, GrpcService(FrontLink(control), order.limits))
    await server.start()
    control.send(b'{"ready":true}')
    loop.add_reader(control, hear)
    ends = [asyncio.create_task(over.wait()), asyncio.create_task(server.wait_for_termination())]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if not over.is_set():
        raise RuntimeError("grpc's server ended by itself")
    loop.remove_reader(control)
    await server.stop(order.limits.drain_seconds)


def grpc_server(order: GrpcOrder, service: GrpcService) -> grpc.aio.Server:
    """A server that listens where the order says, not yet started.

    Raises:
        RuntimeError: the address is taken.
        TlsMisconfigured: the certificate cannot be used.
    """
    limits = order.limits
    server = grpc.aio.server(
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
