"""A real endpoint that versions are released on, and requests to it all the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Server
from endpoint_process import ASK, TOKEN, Endpoint, endpoint
from release_world import World, new_name

from model_registry.endpoint_client import Endpoint as EndpointClient
from model_registry.registry import Registry
from model_registry.rollout_plan import RolloutPlan
from model_registry.store import Store
from model_registry.variant import RuntimeSpec
from tasks.release.ledger_protocol import ReleaseProtocol

NOBODY = "http://127.0.0.1:9"
QUICK = RolloutPlan(shadow_seconds=1, shadow_share=1.0, canary=(0.5,), step_seconds=1, min_requests=10, max_slow=0.9)
LONG = QUICK.model_copy(update={"shadow_seconds": 0.0, "step_seconds": 20.0, "min_requests": 0})


@contextmanager
def releasing_endpoint(s3: Server, folder: Path, bucket: str) -> Iterator[Endpoint]:
    """An endpoint on a store of its own; our environment reaches both."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in s3.environment.items():
            environment.setenv(name, value)
        environment.setenv("WINNOW_STORE", f"s3://{bucket}")
        environment.setenv("MLFLOW_TRACKING_URI", NOBODY)  # it only shows what the ledger says
        Store.from_environment().prepare()
        with endpoint(folder) as running:
            environment.setenv("WINNOW_ENDPOINT", running.url)
            environment.setenv("WINNOW_ENDPOINT_ADMIN", running.admin_url)
            environment.setenv("WINNOW_ADMIN_TOKEN", TOKEN)
            yield running


@contextmanager
def three_versions(folder: Path) -> Iterator[World]:
    """Of a new model: version 2 answers like version 1 and is another variant; version 3 answers otherwise."""
    with EndpointClient.from_environment() as client:
        made = World(Store.from_environment(), Registry(NOBODY), client, new_name(), folder)
        made.register(1, number=5, row=False)
        made.register(2, number=5, runtime=RuntimeSpec(arena=False), row=False)
        made.register(3, number=7, row=False)
        yield made


def protocol(world: World) -> ReleaseProtocol:
    return ReleaseProtocol(world.store, world.endpoint, None, world.model)


@contextmanager
def traffic(process: Endpoint, model: str, clients: int = 2, body: Any = ASK) -> Iterator[list[tuple[int, str]]]:
    """Requests all the time; status and version of each answer."""
    answers, stop = list[tuple[int, str]](), threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=process.url, timeout=60, verify=False) as client:
            while not stop.is_set():
                found = client.post(f"/v2/models/{model}/infer", json=body)
                answers.append((found.status_code, found.json().get("model_version", found.text)))
                time.sleep(0.002)

    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(ask) for _ in range(clients)]
        try:
            yield answers
        finally:
            stop.set()
        for done in asking:
            done.result()
