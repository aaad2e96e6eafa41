"""The endpoint as an application of Ray Serve: ``serve run winnow:ray_application min_replicas=2 max_replicas=8``.

A replica is an endpoint of its own, a process with its engines, and dies with it. Ray's proxies hand requests to the
replica, which hands them to its endpoint: keys, limits, batching, swaps and errors are the endpoint's.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from typing import Any

from pydantic import Field

from model_registry.variant import Frozen
from serving.owned_endpoint import start_owned_endpoint
from serving.ray_forwarder import RayForwarder

_START_SECONDS, _READY_SECONDS, _PAUSE = 60.0, 60.0, 0.1
_FOLLOW = "5"
log = logging.getLogger("ray.serve")


class RaySettings(Frozen):
    """What ``serve run`` takes as ``name=value``, and an application's ``args`` in a configuration of Ray Serve."""

    min_replicas: int = Field(default=1, ge=1, description="replicas that are always there")
    max_replicas: int = Field(default=4, ge=1, description="replicas at most")
    pending: float = Field(
        default=32.0, gt=0, description="requests, waiting or computed, for each of which replicas there should be one"
    )
    most_pending: int = Field(default=512, ge=1, description="requests that a replica takes at a time")
    cores: int = Field(default=2, ge=1, description="that Ray keeps for a replica, and its engines count on")


class RayReplica:
    """One endpoint, for as long as it lives.

    Raises:
        RuntimeError: the endpoint does not start.
    """

    def __init__(self, cores: int) -> None:
        self._process, self._owned = start_owned_endpoint(cores, {"WINNOW_FOLLOW_SECONDS": _FOLLOW, **os.environ})
        self._owned.settimeout(_START_SECONDS)
        with self._owned.makefile("rb") as lines:
            line = lines.readline()
        if not line:
            raise RuntimeError("the endpoint did not start; the replica's log says why")
        self._url = json.loads(line)["url"]
        self._leaving = False
        self._owned.settimeout(None)
        threading.Thread(target=self._die_with_it, daemon=True).start()
        self._wait_ready()

    def __serve_build_asgi_app__(self) -> RayForwarder:
        return RayForwarder(self._url)

    def check_health(self) -> None:
        """Called by Ray every few seconds; a replica that raises is replaced."""
        if self._process.poll() is not None:
            raise RuntimeError("the endpoint has ended")

    def __del__(self) -> None:
        """Called by Ray when it takes the replica away and its requests are answered."""
        self._leaving = True
        if hasattr(self, "_owned"):
            self._owned.shutdown(socket.SHUT_WR)  # the endpoint ends

    def _die_with_it(self) -> None:
        while self._owned.recv(4096):
            pass
        if not self._leaving:
            log.error("the endpoint died (exit status %s); the replica leaves", self._process.poll())
            os._exit(1)  # at once: Ray sends nothing more here, and starts another one

    def _wait_ready(self) -> None:
        """Until its models answer. One that cannot be loaded keeps the others waiting, but not for ever."""
        end = time.monotonic() + _READY_SECONDS
        direct, why = urllib.request.build_opener(urllib.request.ProxyHandler({})), ""
        while time.monotonic() < end:
            try:
                direct.open(f"{self._url}/v2/health/ready", timeout=_READY_SECONDS).close()
                return
            except urllib.error.HTTPError as error:
                with error:
                    why = error.read().decode(errors="replace")
            time.sleep(_PAUSE)
        log.warning("the replica takes requests, though not all is ready after %g s: %s", _READY_SECONDS, why)


def ray_application(args: dict[str, Any]) -> Any:
    """An application of Ray Serve that serves the ledger's champions.

    Args:
        args: see :class:`RaySettings`; numbers may come as text.

    Raises:
        ValidationError: a name is unknown, or a value is none.
        ImportError: Ray is not installed.
    """
    settings = RaySettings.model_validate(args)
    try:
        from ray import serve
    except ImportError as error:
        raise ImportError("Ray Serve is not installed: pip install 'winnow-mlops[ray]'") from error

    deployment = serve.deployment(
        serve.ingress()(RayReplica),
        name="winnow",
        ray_actor_options={"num_cpus": settings.cores},
        max_ongoing_requests=settings.most_pending,
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            # Those that a replica has been handed are the ones its endpoint keeps until they are answered.
            "target_ongoing_requests": settings.pending,
        },
        health_check_period_s=5,
        graceful_shutdown_timeout_s=30,
    )
    return deployment.bind(settings.cores)
