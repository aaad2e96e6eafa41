"""An endpoint with everything that says who asked what: tokens of an issuer, an access log, traces, a log of JSON."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from conftest import Server
from endpoint_process import ASK, Endpoint, endpoint
from onnx_models import numbered
from patience import wait_for
from test_issuer_tokens import AUDIENCE, ISSUER, OTHER, Issuer, signed_with_the_public_key, token, unsigned
from test_request_notes import PARENT
from test_serving_endpoint import start
from trace_collector import Collector, attributes, collector

from model_registry.store import Store
from serving.grpc_front.inference_pb2 import ModelInferRequest, ModelInferResponse


@dataclass
class Watched:
    """The endpoint, the collector of its spans, the server of its issuer's keys."""

    endpoint: Endpoint
    collector: Collector
    issuer: Issuer
    access: Path

    def ask(self, sent: str, model: str = "m", **headers: str) -> httpx.Response:
        url = f"{self.endpoint.url}/v2/models/{model}/infer"
        return self.endpoint.client.post(url, json=ASK, headers={"authorization": f"Bearer {sent}", **headers})

    def lines(self) -> dict[str, dict[str, Any]]:
        """Of the access log, by id."""
        found = [json.loads(line) for line in self.access.read_text().splitlines()]
        return {line["id"]: line for line in found}

    def line(self, identity: str) -> dict[str, Any]:
        wait_for(lambda: identity in self.lines())
        return self.lines()[identity]


@pytest.fixture(scope="module")
def watched(s3: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    home, issuer = tmp_path_factory.mktemp("home"), Issuer()
    settings: dict[str, Any] = {
        "WINNOW_JWT_ISSUER": ISSUER,
        "WINNOW_JWT_AUDIENCE": AUDIENCE,
        "WINNOW_ACCESS_LOG": str(home / "access.log"),
        "WINNOW_LOG": "json",
        "WINNOW_GRPC_PORT": "0",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with pytest.MonkeyPatch.context() as patch, collector() as spans, issuer.serve() as url:
        for name, value in {**s3.environment, "WINNOW_STORE": "s3://watched"}.items():
            patch.setenv(name, value)
        store = Store.from_environment()
        store.prepare()
        settings |= {"WINNOW_JWT_KEYS": url, "OTEL_EXPORTER_OTLP_ENDPOINT": spans.url}
        with endpoint(home, **settings) as running:
            for model in ("m", "other"):
                running.deploy(model, "1", numbered(store, home, 1).digest)
            yield Watched(running, spans, issuer, home / "access.log")


def test_tokens_are_taken_for_what_they_say(watched: Watched) -> None:
    only = token(scope="winnow:infer", winnow_models=["m"])
    assert [watched.ask(only, model).status_code for model in ("m", "other")] == [200, 403]
    assert watched.ask(token("RS256"), "other").status_code == 200
    assert watched.ask(token("ES256", scope="winnow:read")).status_code == 403
    for sent in (
        *(token(exp=time.time() - 60), token(nbf=time.time() + 60), token(iss="other"), token(aud="other")),
        *(token(key=OTHER), unsigned({"alg": "none", "kid": "RS256"}), signed_with_the_public_key(), "a.b.c", "wk_no"),
    ):
        refused = watched.ask(sent)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer"), refused.text
    limited = token(sub="slow", winnow_rate=1)
    assert {watched.ask(limited).status_code for _ in range(3)} == {200, 429}
    read = {"authorization": f"Bearer {token(scope='winnow:read')}"}
    assert watched.endpoint.client.get(f"{watched.endpoint.url}/v2/models/m", headers=read).status_code == 200


def test_a_verified_token_costs_no_more_verifications(watched: Watched) -> None:
    sent = token()
    before = watched.issuer.asked
    assert {watched.ask(sent, traceparent=PARENT.decode()).status_code for _ in range(50)} == {200}
    assert watched.issuer.asked == before == 1


def test_grpc_takes_tokens_ids_and_parents_too(watched: Watched) -> None:
    address = watched.endpoint.admin("GET", "/admin/models").json()["grpc"]["address"]
    wait_for(lambda: watched.endpoint.admin("GET", "/admin/models").json()["grpc"]["state"] == "ready")
    with grpc.insecure_channel(address) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=ModelInferRequest.SerializeToString,
            response_deserializer=ModelInferResponse.FromString,
        )
        asked = ModelInferRequest(model_name="m")
        asked.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([5, 5])
        parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
        given = (("authorization", f"Bearer {token()}"), ("x-request-id", "by-grpc"), ("traceparent", parent))
        assert infer(asked, metadata=given, timeout=30).model_version == "1"
        with pytest.raises(grpc.RpcError) as refused:
            infer(asked, metadata=(("authorization", f"Bearer {token(key=OTHER)}"),), timeout=30)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert watched.line("by-grpc")["status"] == 200
    wait_for(lambda: any(span.trace_id == bytes.fromhex("ab" * 16) for span in watched.collector.spans))


def test_each_request_is_in_the_access_log_and_in_the_traces(watched: Watched) -> None:
    sent = token(sub="shop")
    answer = watched.ask(sent, **{"x-request-id": "seen-1", "traceparent": PARENT.decode()})
    assert answer.headers["x-request-id"] == "seen-1"
    line = watched.line("seen-1")
    assert line.pop("ms") > 0 and line.pop("time").startswith("20")
    (key,) = {other["key"] for other in watched.lines().values() if other["id"] == "seen-1"}
    assert line == {
        "id": "seen-1",
        "key": key,
        "method": "POST",
        "path": "/v2/models/m/infer",
        "model": "m",
        "version": "1",
        "status": 200,
    }
    assert len(key) == 8
    ours = watched.ask("wrong").headers["x-request-id"]
    refused = watched.line(ours)
    assert (refused["status"], refused["key"], refused["model"], refused["version"]) == (401, None, "m", None)
    wait_for(lambda: {"seen-1", ours} <= {attributes(span)["winnow.request_id"] for span in watched.collector.spans})
    (span,) = [s for s in watched.collector.spans if attributes(s)["winnow.request_id"] == "seen-1"]
    found = attributes(span)
    assert (span.trace_id.hex(), found["winnow.version"], found["winnow.batch.rows"]) == (PARENT[3:35].decode(), "1", 1)
    assert found["winnow.compute_ms"] > 0 and found["winnow.queue_ms"] >= 0
    text = watched.access.read_text()
    assert sent not in text and '"inputs"' not in text


def test_the_access_log_goes_on_in_a_new_file_after_a_hang_up(watched: Watched) -> None:
    watched.ask(token(), **{"x-request-id": "before"})
    watched.line("before")
    moved = watched.access.rename(watched.access.with_suffix(".1"))
    watched.endpoint.process.send_signal(signal.SIGHUP)
    wait_for(watched.access.exists)
    watched.ask(token(), **{"x-request-id": "after"})
    assert watched.line("after")["status"] == 200
    assert "after" not in moved.read_text()


def test_keys_that_cannot_be_taken_over_are_shown(watched: Watched) -> None:
    def faults() -> dict[str, str]:
        found: dict[str, str] = watched.endpoint.admin("GET", "/admin/models").json()["faults"]
        return found

    assert faults() == {"keys": "", "issuer": ""}
    path = watched.endpoint.home / "keys.json"
    path.write_text("{")
    path.chmod(0o600)
    wait_for(lambda: "damaged" in faults()["keys"])
    metrics = watched.endpoint.admin("GET", "/metrics").text
    assert 'winnow_access_fault{of="keys"} 1.0' in metrics and 'winnow_access_fault{of="issuer"} 0.0' in metrics
    assert watched.ask(token()).status_code == 200
    path.unlink()
    wait_for(lambda: not faults()["keys"])


def test_every_line_of_the_log_is_json(watched: Watched) -> None:
    said = [json.loads(line) for line in watched.endpoint.log]
    assert {"serving on", "gRPC on"} <= {" ".join(line["message"].split()[:2]) for line in said}
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"WINNOW_JWT_KEYS": "jwks.json"}, "WINNOW_JWT_ISSUER"),
        ({"WINNOW_JWT_KEYS": "none.json", "WINNOW_JWT_ISSUER": "i", "WINNOW_JWT_AUDIENCE": "a"}, "none.json cannot be"),
        ({"WINNOW_LOG": "xml"}, "set it to text or json"),
        ({"WINNOW_ACCESS_LOG": "/nowhere/access.log"}, "/nowhere/access.log cannot be written"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http/protobuf"),
    ],
)
def test_settings_that_say_too_little_are_refused(tmp_path: Path, settings: dict[str, str], why: str) -> None:
    done = start(WINNOW_HOME=str(tmp_path), **settings)
    assert done.returncode == 2 and why in done.stderr and "Traceback" not in done.stderr, done.stderr
