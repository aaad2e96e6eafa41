"""What a stack is to be like: what is given now, over the environment, over what was chosen before."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from urllib.parse import urlsplit

from infra.daemon import Daemon
from infra.faults import StackMisconfigured
from infra.home import Home, Secrets, Settings
from infra.ports import LOOPBACK, PUBLIC


def choose_settings(
    home: Home, ports: Mapping[str, int], s3: str | None, mlflow_db: str | None, store: str | None
) -> tuple[Settings, Secrets]:
    """Settings and secrets for the next start; nothing is written.

    Raises:
        StackMisconfigured: a value cannot work; names it, the rule and the remedy.
    """
    settings = home.settings() or Settings()
    secrets = home.secrets() or Secrets()
    ports = {**_ports_of_environment(), **ports}
    unknown = set(ports) - set(settings.ports)
    if unknown:
        raise StackMisconfigured(
            f"no port is called {', '.join(sorted(unknown))}; there are {', '.join(settings.ports)}"
        )
    endpoint = _s3_endpoint(settings, s3)
    known = secrets.mlflow_db
    database = mlflow_db or os.environ.get("WINNOW_MLFLOW_DB") or known
    secrets = replace(secrets, mlflow_db="" if database == "sqlite" else database)
    if secrets.mlflow_db and (secrets.mlflow_db != known or Daemon("mlflow", home.path).running() is None):
        _try_database(secrets.mlflow_db)
    settings = replace(
        settings,
        ports={**settings.ports, **ports},
        s3_endpoint=endpoint,
        store=store or os.environ.get("WINNOW_STORE") or settings.store,
        region=(os.environ.get("AWS_REGION") or settings.region) if endpoint else "us-east-1",
    )
    return settings, secrets


def _s3_endpoint(settings: Settings, given: str | None) -> str:
    """The URL of an S3 that is not ours; empty for the embedded server."""
    environment = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    endpoint = given if given is not None else environment or settings.s3_endpoint
    if endpoint == "local" or endpoint.rstrip("/") == f"http://{LOOPBACK}:{settings.ports['s3']}":
        return ""  # the second: a shell that has our own address exported
    if endpoint and urlsplit(endpoint).scheme not in {"http", "https"}:
        raise StackMisconfigured(f"the S3 endpoint {endpoint!r} is no URL; give one like https://s3.example.org")
    return endpoint


def _ports_of_environment() -> dict[str, int]:
    found = {}
    for port in PUBLIC:
        given = os.environ.get(port.variable)
        if given:
            if not given.isdecimal():
                raise StackMisconfigured(f"{port.variable}={given!r} is no port; set a number between 1 and 65535")
            found[port.name] = int(given)
    return found


def _try_database(url: str) -> None:
    """Refuse a database URL that cannot work. MLflow itself would try for two minutes before it says so."""
    scheme = urlsplit(url).scheme
    if scheme.split("+")[0] not in {"postgresql", "mysql", "mssql", "sqlite"}:
        raise StackMisconfigured(
            f"the database URL of MLflow starts with {scheme!r}; give one like postgresql://user:password@host/mlflow"
        )
    if scheme == "postgresql" and find_spec("psycopg2") is None:
        raise StackMisconfigured("PostgreSQL needs psycopg2; run pip install 'winnow-mlops[postgres]'")
    done = subprocess.run(
        [sys.executable, "-c", _CONNECT],
        env={**os.environ, "MLFLOW_BACKEND_STORE_URI": url},  # not as an argument, which every user could read
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        told = done.stderr.strip().splitlines()
        raise StackMisconfigured(
            f"the database of MLflow cannot be used: {told[-1] if told else 'no answer'}; "
            "give its URL with --mlflow-db, or `--mlflow-db sqlite` for a file"
        )


# In a process of its own: infra imports the standard library only, and drivers may hang.
_CONNECT = """
import os, sys, sqlalchemy
try:
    sqlalchemy.create_engine(os.environ["MLFLOW_BACKEND_STORE_URI"]).connect().close()
except Exception as error:
    sys.exit(" ".join(str(getattr(error, "orig", None) or error).split()))
"""
