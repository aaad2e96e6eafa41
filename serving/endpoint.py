"""The endpoint's process: settings from the environment, both listeners, start-up and an orderly end."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from model_registry.ledger import Ledger
from model_registry.store import Store
from serving.champions import LedgerReader, load_champions
from serving.front.admin_plane import AdminPlane
from serving.front.data_plane import DataPlane
from serving.front.http_service import RoutedService, tick_for_ever
from serving.limits import RequestLimits
from serving.rollout import Rollout
from serving.variant_cache import VariantCache

_BACKLOG = 2048
_SWEEP_SECONDS = 0.5
log = logging.getLogger("winnow.serving")


class EndpointMisconfigured(Exception):
    """The endpoint cannot start with these settings; names the variable and what to set."""


@dataclass(frozen=True)
class EndpointSettings:
    """Where the endpoint listens and keeps its files."""

    host: str = "127.0.0.1"
    port: int = 8080
    admin_host: str = "127.0.0.1"
    admin_port: int = 8081
    admin_token: str = field(default="", repr=False)
    home: Path = Path(".winnow")
    limits: RequestLimits = field(default_factory=RequestLimits)

    @classmethod
    def from_environment(cls) -> EndpointSettings:
        """From WINNOW_ENDPOINT_HOST, WINNOW_ENDPOINT_PORT, WINNOW_ADMIN_HOST, WINNOW_ADMIN_PORT, WINNOW_ADMIN_TOKEN
        and WINNOW_HOME.

        Raises:
            EndpointMisconfigured: a port is no port, or the admin listener would be open to the network unprotected.
        """
        return cls(
            host=os.environ.get("WINNOW_ENDPOINT_HOST", cls.host),
            port=_port("WINNOW_ENDPOINT_PORT", cls.port),
            admin_host=os.environ.get("WINNOW_ADMIN_HOST", cls.admin_host),
            admin_port=_port("WINNOW_ADMIN_PORT", cls.admin_port),
            admin_token=os.environ.get("WINNOW_ADMIN_TOKEN", ""),
            home=Path(os.environ.get("WINNOW_HOME", ".winnow")),
        )

    def __post_init__(self) -> None:
        if not self.admin_token and not _is_loopback(self.admin_host):
            raise EndpointMisconfigured(
                f"the admin listener on {self.admin_host} can be reached from outside and has no token; "
                "set WINNOW_ADMIN_TOKEN, or WINNOW_ADMIN_HOST=127.0.0.1"
            )


def run_endpoint(settings: EndpointSettings, ledger: Callable[[], LedgerReader] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain: listeners first, engine processes last.

    Raises:
        EndpointMisconfigured: a port is taken.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for quiet in ("botocore", "boto3", "s3transfer", "urllib3", "asyncio"):
        logging.getLogger(quiet).setLevel(logging.WARNING)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(settings, ledger))


async def serve(settings: EndpointSettings, ledger: Callable[[], LedgerReader] | None = None) -> None:
    """The endpoint on the running event loop; see :func:`run`."""
    rollout = Rollout(VariantCache(settings.home / "endpoint-cache", Store.from_environment), settings.limits)
    sockets = [
        _listen(settings.host, settings.port, "WINNOW_ENDPOINT_PORT"),
        _listen(settings.admin_host, settings.admin_port, "WINNOW_ADMIN_PORT"),
    ]
    services: list[RoutedService] = [
        DataPlane(rollout, settings.limits),
        AdminPlane(rollout, settings.admin_token),
    ]
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    listeners = [
        await loop.create_server(service.connect, sock=sock, backlog=_BACKLOG)
        for service, sock in zip(services, sockets, strict=True)
    ]
    beside = [
        asyncio.create_task(load_champions(rollout, ledger or _ledger)),
        asyncio.create_task(tick_for_ever(*services)),
        asyncio.create_task(_sweep_for_ever(rollout)),
    ]
    for task in beside:
        task.add_done_callback(_report)
    log.info("serving on %s, admin on %s", _url(sockets[0]), _url(sockets[1]))
    try:
        await stopping.wait()
        log.info("stopping: requests in flight are finished first")
        for listener in listeners:
            listener.close()
        beside[0].cancel()
        await asyncio.gather(*(service.drain(settings.limits.drain_seconds) for service in services))
    finally:
        await rollout.close()
        for task in beside:
            task.cancel()
    log.info("stopped")


async def _sweep_for_ever(rollout: Rollout) -> None:
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        rollout.sweep()


def _ledger() -> LedgerReader:
    return Ledger(Store.from_environment())


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s stopped: %s: %s", task.get_name(), type(error).__name__, error, exc_info=error)


def _listen(host: str, port: int, variable: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(_BACKLOG)  # at once: whoever reads "serving on" may connect, and no other process gets the port
    except OSError as error:
        sock.close()
        raise EndpointMisconfigured(
            f"cannot listen on {host} port {port}: {error.strerror}; end what uses it, or set {variable}"
        ) from error
    sock.set_inheritable(False)
    return sock


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not Linux
        return None
    return uvloop.new_event_loop


def _port(variable: str, default: int) -> int:
    value = os.environ.get(variable, str(default))
    if not value.isdecimal() or not 0 <= int(value[:6]) <= 65535:
        raise EndpointMisconfigured(f"{variable} is {value!r}; set it to a port, 0 to 65535 (0: any free one)")
    return int(value)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
