"""MLflow's pages and API want a password; whether the server lives, anybody may ask."""

from __future__ import annotations

import asyncio
import json
from importlib.metadata import entry_points
from typing import Any

import pytest

from infra.mlflow_gate import GateMisconfigured, PasswordGate, gated_mlflow
from model_registry.authorization import basic_authorization, mlflow_authorization, prefect_authorization

HEADER = basic_authorization("winnow:a pass:word")["Authorization"]


def ask(path: str = "/", header: str | None = None, *, method: str = "GET", kind: str = "http") -> list[dict[str, Any]]:
    """What the gate sends; the application behind it sends only ``{"type": "passed"}``."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "passed"})

    async def receive() -> dict[str, Any]:
        raise AssertionError("a request that is refused is not read")

    async def send(message: Any) -> None:
        sent.append(dict(message))

    headers = [] if header is None else [(b"authorization", header.encode())]
    scope = {"type": kind, "method": method, "path": path, "headers": headers}
    asyncio.run(PasswordGate(app, HEADER)(scope, receive, send))
    return sent


PASSED = [{"type": "passed"}]


@pytest.mark.parametrize("header", [None, "", "Basic", HEADER[:-1], HEADER + "x", HEADER.lower(), "Bearer x"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("POST", "/health"), ("GET", "/health/"), ("GET", "/version"), ("GET", "/api/2.0/mlflow/x/health")],
)
def test_without_the_password_nothing_passes(header: str | None, method: str, path: str) -> None:
    start, body = ask(path, header, method=method)
    assert start["status"] == 401
    assert dict(start["headers"])[b"www-authenticate"].startswith(b"Basic realm=")  # a browser asks for it
    assert "MLFLOW_TRACKING_PASSWORD" in json.loads(body["body"])["message"]


def test_with_it_all_does_and_without_it_only_whether_it_lives() -> None:
    assert ask("/api/2.0/mlflow/runs/create", HEADER, method="POST") == PASSED
    assert ask("/health") == PASSED
    assert ask(kind="lifespan") == PASSED


def test_a_websocket_is_closed() -> None:
    assert ask(kind="websocket") == [{"type": "websocket.close", "code": 1008}]
    assert ask(kind="websocket", header=HEADER) == PASSED


def test_without_a_password_of_its_own_it_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    with pytest.raises(GateMisconfigured, match="MLFLOW_TRACKING_PASSWORD"):
        gated_mlflow()


def test_mlflow_finds_it_by_its_name() -> None:
    [found] = [one for one in entry_points(group="mlflow.app") if one.name == "winnow"]
    assert found.load() is gated_mlflow


def test_who_asks_is_read_from_the_clients_variables() -> None:
    """RFC 7617; and what users with servers of their own have set goes on working."""
    assert basic_authorization("Aladdin:open sesame") == {"Authorization": "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="}
    user = {"MLFLOW_TRACKING_USERNAME": "Aladdin", "MLFLOW_TRACKING_PASSWORD": "open sesame"}
    token = {"MLFLOW_TRACKING_TOKEN": "t"}
    assert mlflow_authorization({**user, **token}) == basic_authorization("Aladdin:open sesame")
    assert mlflow_authorization(token) == {"Authorization": "Bearer t"}
    assert mlflow_authorization({"MLFLOW_TRACKING_USERNAME": "only"}) == {} == prefect_authorization({})
    string, key = {"PREFECT_API_AUTH_STRING": "a:b"}, {"PREFECT_API_KEY": "k"}
    assert prefect_authorization({**string, **key}) == basic_authorization("a:b")
    assert prefect_authorization(key) == {"Authorization": "Bearer k"}
