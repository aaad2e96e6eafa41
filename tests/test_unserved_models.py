"""What ``up`` and ``status`` say of models that the endpoint does not answer for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import orjson
import pytest

from flows.commands.unserved_models import access_faults, unserved_models


def version(number: str, state: str, reason: str = "") -> dict[str, Any]:
    return {"version": number, "state": state, "reason": reason}


MODELS = [
    {"model": "well", "serving": "2", "reason": "", "versions": [version("1", "stopped"), version("2", "ready")]},
    {"model": "dead", "serving": "1", "reason": "", "versions": [version("1", "restarting", "its engine died")]},
    {"model": "new", "serving": None, "reason": "its champion is being loaded", "versions": []},
]

FAULTS = {"keys": "keys.json can be read by others; chmod 600 keys.json", "issuer": ""}


class Admin(BaseHTTPRequestHandler):
    """Stands for the endpoint's admin listener."""

    def do_GET(self) -> None:
        known = (self.path, self.headers["Authorization"]) == ("/admin/models", "Bearer secret")
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(orjson.dumps({"models": MODELS, "faults": FAULTS}))

    def log_message(self, *_: object) -> None:
        """Nothing: the test's output is no log."""


@pytest.fixture
def admin() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Admin) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_model_whose_engine_is_gone_is_named_with_the_reason(admin: str) -> None:
    assert unserved_models({"WINNOW_ENDPOINT_ADMIN": admin, "WINNOW_ADMIN_TOKEN": "secret"}) == {
        "dead": "version 1 is restarting: its engine died",
        "new": "its champion is being loaded",
    }


def test_an_endpoint_that_says_nothing_is_not_taken_for_one_that_serves(admin: str) -> None:
    assert unserved_models({"WINNOW_ENDPOINT_ADMIN": admin, "WINNOW_ADMIN_TOKEN": "other"}) is None
    assert unserved_models({"WINNOW_ENDPOINT_ADMIN": "http://127.0.0.1:1", "WINNOW_ADMIN_TOKEN": ""}) is None


def test_keys_that_cannot_be_taken_over_are_said(admin: str) -> None:
    (said,) = access_faults({"WINNOW_ENDPOINT_ADMIN": admin, "WINNOW_ADMIN_TOKEN": "secret"})
    assert "the endpoint's keys could not be taken over" in said and "chmod 600" in said
    assert access_faults({"WINNOW_ENDPOINT_ADMIN": "http://127.0.0.1:1", "WINNOW_ADMIN_TOKEN": ""}) == []
