"""The endpoint's process: settings from the environment, both listeners, start-up and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import ipaddress
import logging
import math
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from model_registry.audit_log import AuditLog
from serving.acceptors.acceptor_keeper import AcceptorKeeper
from serving.asked_store import ask_for_releases, ask_for_variant
from serving.champions import load_champions
from serving.endpoint_watch import EndpointWatch
from serving.event_loop import bound_socket, listen, loop_factory
from serving.followed_ledger import follow_ledger
from serving.front.admin_plane import AdminPlane
from serving.front.data_plane import DataPlane
from serving.front.http_service import RoutedService, tick_for_ever
from serving.grpc_front.grpc_keeper import GrpcKeeper
from serving.grpc_front.grpc_order import GrpcOrder, grpc_is_installed
from serving.issuer_keys import IssuerKeysUnusable, is_encrypted, is_url
from serving.key_ring import KeyRing, TokenFinder
from serving.limits import RequestLimits
from serving.pinned_models import BadPin, PinnedModels
from serving.releases import ReadReleases, read_releases, stored_releases
from serving.remembered_champions import RememberedChampions
from serving.rollout import Rollout
from serving.sampling.sample_keeper import SampleKeeper
from serving.sampling.sample_order import SampleOrder, sample_order
from serving.telemetry.access_log import STANDARD_OUTPUT, AccessLog
from serving.telemetry.log_lines import configure_log
from serving.telemetry.request_watch import RequestSink, RequestWatch
from serving.telemetry.trace_settings import TracesMisconfigured, traces_are_wanted
from serving.tls import Tls, TlsMisconfigured
from serving.variant_cache import VariantCache

_SWEEP_SECONDS = 0.5
_MOST_ACCEPTORS = 64
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
    grpc_port: int | None = None
    """On the same host; None: no gRPC."""
    home: Path = Path(".winnow")
    keys: Path | None = None
    """File of the clients' keys; None: ``keys.json`` in the home."""
    certificate: Path | None = None
    certificate_key: Path | None = None
    client_authorities: Path | None = None
    token_keys: str = ""
    """A file or URL with the keys of the issuer whose tokens are taken beside the clients' keys; empty: none are."""
    token_issuer: str = ""
    token_audience: str = ""
    access_log: str = ""
    """A file that gets a line for each request, ``-`` for standard output; empty: none does."""
    traced: bool = False
    """Whether a span of each inference request is sent to the collector that OpenTelemetry's own variables name."""
    isolated: bool = True
    """Whether models run in processes of their own, and not in the front's."""
    acceptors: int = 0
    """Processes that hold the clients' connections for the front; 0: it holds them itself."""
    cpu_hour_cost: float | None = None
    """Of one core for an hour; None: no costs are shown."""
    samples: SampleOrder | None = None
    """Which requests are kept; None: none."""
    pinned: PinnedModels | None = None
    """What is served whatever the ledger says; None: the ledger's champions."""
    follow: float | None = None
    """Seconds between looks at the ledger for new champions; None: they come by the admin listener alone."""
    unprotected: bool = False
    """Whether the data plane may be open to the network without TLS and keys: something in front of it has both."""
    limits: RequestLimits = field(default_factory=RequestLimits)

    @classmethod
    def from_environment(cls) -> EndpointSettings:
        """From WINNOW_ENDPOINT_HOST, WINNOW_ENDPOINT_PORT, WINNOW_ADMIN_HOST, WINNOW_ADMIN_PORT, WINNOW_ADMIN_TOKEN,
        WINNOW_GRPC_PORT, WINNOW_HOME, WINNOW_KEYS, WINNOW_TLS_CERTIFICATE, WINNOW_TLS_KEY, WINNOW_TLS_CLIENTS,
        WINNOW_JWT_KEYS, WINNOW_JWT_ISSUER, WINNOW_JWT_AUDIENCE, WINNOW_ACCESS_LOG, OTEL_EXPORTER_OTLP_ENDPOINT,
        WINNOW_ENDPOINT_ISOLATION, WINNOW_ENDPOINT_ACCEPTORS, WINNOW_SERVE, WINNOW_FOLLOW_SECONDS, WINNOW_CPU_HOUR_COST,
        WINNOW_SAMPLE, WINNOW_SAMPLE_DAYS and WINNOW_ENDPOINT_UNPROTECTED.

        Raises:
            EndpointMisconfigured: one of them cannot be, or a listener would be open to the network unprotected.
        """
        return cls(
            host=os.environ.get("WINNOW_ENDPOINT_HOST", cls.host),
            port=_port("WINNOW_ENDPOINT_PORT", cls.port),
            admin_host=os.environ.get("WINNOW_ADMIN_HOST", cls.admin_host),
            admin_port=_port("WINNOW_ADMIN_PORT", cls.admin_port),
            admin_token=os.environ.get("WINNOW_ADMIN_TOKEN", ""),
            grpc_port=_port("WINNOW_GRPC_PORT", 0) if os.environ.get("WINNOW_GRPC_PORT") else None,
            home=Path(os.environ.get("WINNOW_HOME", ".winnow")),
            keys=_file("WINNOW_KEYS"),
            certificate=_file("WINNOW_TLS_CERTIFICATE"),
            certificate_key=_file("WINNOW_TLS_KEY"),
            client_authorities=_file("WINNOW_TLS_CLIENTS"),
            token_keys=os.environ.get("WINNOW_JWT_KEYS", ""),
            token_issuer=os.environ.get("WINNOW_JWT_ISSUER", ""),
            token_audience=os.environ.get("WINNOW_JWT_AUDIENCE", ""),
            access_log=os.environ.get("WINNOW_ACCESS_LOG", ""),
            traced=_traced(),
            isolated=_isolated(),
            acceptors=_acceptors(),
            cpu_hour_cost=_cost(),
            samples=_samples(),
            pinned=_pinned(),
            follow=_follow(),
            unprotected=os.environ.get("WINNOW_ENDPOINT_UNPROTECTED", "").lower() in ("1", "true", "yes"),
        )

    def __post_init__(self) -> None:
        if not self.admin_token and not _is_loopback(self.admin_host):
            raise EndpointMisconfigured(
                f"the admin listener on {self.admin_host} can be reached from outside and has no token; "
                "set WINNOW_ADMIN_TOKEN, or WINNOW_ADMIN_HOST=127.0.0.1"
            )
        if (self.certificate is None) != (self.certificate_key is None):
            raise EndpointMisconfigured("set both WINNOW_TLS_CERTIFICATE and WINNOW_TLS_KEY, or neither")
        if self.client_authorities is not None and self.certificate is None:
            raise EndpointMisconfigured("WINNOW_TLS_CLIENTS needs WINNOW_TLS_CERTIFICATE and WINNOW_TLS_KEY")
        tokens = (self.token_keys, self.token_issuer, self.token_audience)
        if any(tokens) and not all(tokens):
            raise EndpointMisconfigured(
                "set WINNOW_JWT_KEYS, WINNOW_JWT_ISSUER and WINNOW_JWT_AUDIENCE, or none of them"
            )
        asks = self.key_file.exists() or self.client_authorities is not None or bool(self.token_keys)
        protected = self.certificate is not None and asks
        if not (protected or self.unprotected or _is_loopback(self.host)):
            raise EndpointMisconfigured(
                f"the endpoint on {self.host} can be reached from outside and lacks TLS or keys: set "
                "WINNOW_TLS_CERTIFICATE and WINNOW_TLS_KEY and make a key (winnow keys add NAME), or set "
                "WINNOW_ENDPOINT_UNPROTECTED=1 where something in front of it has both"
            )

    @property
    def key_file(self) -> Path:
        return self.keys or self.home / "keys.json"


Listening = Callable[[str, str], None]
"""Is told the URLs of the data plane and of the admin listener, once both take connections."""


def run_endpoint(settings: EndpointSettings, listening: Listening | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain: listeners first, engine processes last.

    Raises:
        EndpointMisconfigured: a port is taken.
    """
    try:
        configure_log()
    except ValueError as error:
        raise EndpointMisconfigured(str(error)) from error
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(settings, listening))


async def serve(settings: EndpointSettings, listening: Listening | None = None) -> None:
    """The endpoint on the running event loop; see :func:`run_endpoint`."""
    tls = _tls(settings)
    rollout = Rollout(
        VariantCache(settings.home / "endpoint-cache", ask_for_variant),
        settings.limits,
        isolated=settings.isolated,
    )
    sockets = [
        _listen(settings.host, settings.port, "WINNOW_ENDPOINT_PORT"),
        _listen(settings.admin_host, settings.admin_port, "WINNOW_ADMIN_PORT"),
    ]
    samples = None if settings.samples is None else SampleKeeper(settings.samples)
    keys = KeyRing(settings.key_file, settings.admin_token, _issuer_tokens(settings))
    data = DataPlane(rollout, settings.limits, keys, samples)
    data.watch = requests = _watch(settings)
    grpc = None if settings.grpc_port is None else GrpcKeeper(_grpc_order(settings, settings.grpc_port), data.adopt)
    files = [file for file in (settings.certificate, settings.certificate_key, settings.client_authorities) if file]
    acceptors = AcceptorKeeper(settings.acceptors, sockets[0], files, data.connect)
    watch = EndpointWatch(rollout, data, keys, acceptors, cpu_hour_cost=settings.cpu_hour_cost)
    admin = AdminPlane(rollout, settings.admin_token, AuditLog(settings.home / "audit.jsonl"), watch, grpc)
    services: list[RoutedService] = [data, admin]
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    listeners = [await listen(admin.connect, sockets[1], None)]
    if not settings.acceptors:
        listeners.append(await listen(data.connect, sockets[0], tls))
    champions = _champions(settings)
    remembered = RememberedChampions(settings.home / "served.txt")
    beside = [
        asyncio.create_task(load_champions(rollout, champions, remembered.last)),
        asyncio.create_task(tick_for_ever(*services)),
        asyncio.create_task(_sweep_for_ever(rollout, remembered, tls)),
        asyncio.create_task(keys.keep()),
        asyncio.create_task(acceptors.keep()),
        *([] if requests is None else [asyncio.create_task(requests.keep())]),
        *([] if grpc is None else [asyncio.create_task(grpc.keep())]),
        *([] if samples is None else [asyncio.create_task(samples.keep())]),
        *([] if settings.follow is None else [asyncio.create_task(follow_ledger(rollout, champions, settings.follow))]),
    ]
    for task in beside:
        task.add_done_callback(_report)
    urls = _url(sockets[0], tls is not None), _url(sockets[1])
    log.info("serving on %s, admin on %s", *urls)
    if listening is not None:
        listening(*urls)
    try:
        await stopping.wait()
        log.info("stopping: requests in flight are finished first")
        for listener in listeners:
            listener.close()
        acceptors.stop()
        beside[0].cancel()
        if grpc is not None:  # first, for its calls end here
            await grpc.stop(settings.limits.drain_seconds)
        await asyncio.gather(*(service.drain(settings.limits.drain_seconds) for service in services))
        await acceptors.close()
        if samples is not None:  # last, for these were answered until now
            await samples.stop()
    finally:
        remembered.note(rollout)
        await rollout.close()
        for task in beside:
            task.cancel()
        if requests is not None:
            await requests.close()
    log.info("stopped")


async def _sweep_for_ever(rollout: Rollout, remembered: RememberedChampions, tls: Tls | None) -> None:
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        rollout.sweep()
        remembered.note(rollout)
        if tls is not None:
            tls.reload()


def _champions(settings: EndpointSettings) -> ReadReleases:
    """How it is known what to serve."""
    if settings.pinned is not None:
        return partial(read_releases, settings.pinned)
    # A process for each of many looks would cost more than S3's client does here.
    return ask_for_releases if settings.follow is None else stored_releases


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s stopped: %s: %s", task.get_name(), type(error).__name__, error, exc_info=error)


def _listen(host: str, port: int, variable: str) -> socket.socket:
    try:
        return bound_socket(host, port)
    except OSError as error:
        raise EndpointMisconfigured(
            f"cannot listen on {host} port {port}: {error.strerror}; end what uses it, or set {variable}"
        ) from error


def _grpc_order(settings: EndpointSettings, port: int) -> GrpcOrder:
    if not grpc_is_installed():
        raise EndpointMisconfigured(
            "WINNOW_GRPC_PORT is set and gRPC is not installed: pip install 'winnow-mlops[grpc]', or unset it"
        )
    with _listen(settings.host, port, "WINNOW_GRPC_PORT") as free:  # the process cannot be handed a socket
        port = free.getsockname()[1]
    files = (settings.certificate, settings.certificate_key, settings.client_authorities)
    return GrpcOrder(settings.host, port, settings.limits, *(str(file) if file else "" for file in files))


def _url(sock: socket.socket, secure: bool = False) -> str:
    host, port = sock.getsockname()[:2]
    return f"http{'s' if secure else ''}://{f'[{host}]' if ':' in host else host}:{port}"


def _isolated() -> bool:
    value = os.environ.get("WINNOW_ENDPOINT_ISOLATION", "process")
    if value not in ("process", "none"):
        raise EndpointMisconfigured(
            f"WINNOW_ENDPOINT_ISOLATION is {value!r}; set it to process (models in processes of their own), or none"
        )
    return value == "process"


def _acceptors() -> int:
    value = os.environ.get("WINNOW_ENDPOINT_ACCEPTORS", "0")
    if not value.isdecimal() or int(value[:3]) > _MOST_ACCEPTORS:
        raise EndpointMisconfigured(f"WINNOW_ENDPOINT_ACCEPTORS is {value!r}; set it to 0 to {_MOST_ACCEPTORS}")
    return int(value)


def _cost() -> float | None:
    value = os.environ.get("WINNOW_CPU_HOUR_COST")
    if not value:
        return None
    with contextlib.suppress(ValueError):
        if 0 <= (cost := float(value)) < math.inf:
            return cost
    raise EndpointMisconfigured(f"WINNOW_CPU_HOUR_COST is {value!r}; set it to a number of at least 0, or unset it")


def _samples() -> SampleOrder | None:
    try:
        return sample_order(os.environ)
    except ValueError as error:
        raise EndpointMisconfigured(str(error)) from error


def _pinned() -> PinnedModels | None:
    text = os.environ.get("WINNOW_SERVE")
    try:
        return PinnedModels.parse(text) if text else None
    except BadPin as error:
        raise EndpointMisconfigured(f"WINNOW_SERVE: {error}") from error


def _follow() -> float | None:
    text = os.environ.get("WINNOW_FOLLOW_SECONDS")
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86_400:
        raise EndpointMisconfigured(f"WINNOW_FOLLOW_SECONDS is {text!r}; set it to seconds, 0.1 to 86400, or unset it")
    return seconds


def _file(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None


def _issuer_tokens(settings: EndpointSettings) -> TokenFinder | None:
    if not settings.token_keys:
        return None
    if any(importlib.util.find_spec(name) is None for name in ("jwt", "cryptography")):
        raise EndpointMisconfigured(
            "WINNOW_JWT_KEYS is set and PyJWT is not installed: pip install 'winnow-mlops[jwt]', or unset it"
        )
    from serving.issuer_tokens import IssuerTokens  # of an extra

    if is_url(settings.token_keys) and not is_encrypted(settings.token_keys):
        log.warning("WINNOW_JWT_KEYS is read without TLS: whoever can change it on its way can let anybody in")
    try:
        return IssuerTokens(settings.token_keys, issuer=settings.token_issuer, audience=settings.token_audience)
    except IssuerKeysUnusable as error:
        raise EndpointMisconfigured(f"WINNOW_JWT_KEYS: {error}") from error


def _traced() -> bool:
    try:
        return traces_are_wanted()
    except TracesMisconfigured as error:
        raise EndpointMisconfigured(str(error)) from error


def _watch(settings: EndpointSettings) -> RequestWatch | None:
    """Who is given what is noted of every request; None: nobody, and nothing is noted."""
    sinks: list[RequestSink] = []
    if settings.access_log:
        try:
            access = AccessLog(settings.access_log)
        except OSError as error:
            raise EndpointMisconfigured(
                f"WINNOW_ACCESS_LOG: {settings.access_log} cannot be written: {error.strerror}"
            ) from error
        if settings.access_log != STANDARD_OUTPUT:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, access.reopen)
        sinks.append(access)
    if settings.traced:
        try:
            from serving.telemetry.request_spans import RequestSpans  # of an extra
        except ModuleNotFoundError as error:
            raise EndpointMisconfigured(
                "OTEL_EXPORTER_OTLP_ENDPOINT is set and OpenTelemetry is not installed: "
                "pip install 'winnow-mlops[otel]', or unset it"
            ) from error
        sinks.append(RequestSpans(importlib.metadata.version("winnow-mlops")))
    return RequestWatch(sinks) if sinks else None


def _tls(settings: EndpointSettings) -> Tls | None:
    if settings.certificate is None or settings.certificate_key is None:
        return None
    try:
        return Tls(settings.certificate, settings.certificate_key, settings.client_authorities)
    except TlsMisconfigured as error:
        raise EndpointMisconfigured(str(error)) from error


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
