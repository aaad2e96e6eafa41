"""The endpoint over real sockets: the protocol's paths, bad requests, the admin listener."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from conftest import Server
from endpoint_process import TOKEN, Endpoint, endpoint
from onnx_models import answer, digits, identities, log, publish, slow
from patience import PATIENCE

from model_registry.cpu_class import cpu_class
from model_registry.store import Store
from model_registry.variant import RuntimeSpec, Variant

IMAGE = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [8] * 64}
VARIANTS: dict[str, Variant] = {}


@pytest.fixture(scope="module")
def served(s3: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """One endpoint with a few models; the tests below must leave it as they found it."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3.environment, "WINNOW_STORE": "s3://served"}.items():
            patch.setenv(name, value)
        store = Store.from_environment()
        store.prepare()
        makers: dict[str, Any] = {
            "digits": digits,
            "log": log,
            "identities": identities,
            "slow": slow,
            "one": lambda f: answer(f, 1),
            "two": lambda f: answer(f, 2),
            "alien": lambda f: digits(f, runtime=RuntimeSpec(cpu_class="sparc/vis")),
        }
        for name, make in makers.items():
            VARIANTS[name] = publish(store, folder / name, make(folder / name))
        with endpoint(folder / "home") as running:
            for name in ("digits", "log", "identities", "slow"):
                running.deploy(name, "3", VARIANTS[name].digest)
            running.deploy("two-versions", "1", VARIANTS["one"].digest)
            running.deploy("two-versions", "2", VARIANTS["two"].digest)
            yield running


@pytest.fixture(autouse=True)
def still_well(served: Endpoint) -> Iterator[None]:
    """Whatever a test sends, the endpoint is ready afterwards and has restarted no engine."""
    yield
    assert served.get("/v2/health/ready").status_code == 200
    versions = [v for m in served.admin("GET", "/admin/models").json()["models"] for v in m["versions"]]
    assert all(v["state"] == "ready" and v["restarts"] == 0 for v in versions)


def test_clients_that_hang_up_leave_no_tracebacks(served: Endpoint) -> None:
    said, place = len(served.log), urlsplit(served.url)
    body = json.dumps({"inputs": [IMAGE]}).encode()
    head = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    for _ in range(20):
        with closing(socket.create_connection((place.hostname or "", place.port or 0), timeout=30)) as client:
            client.sendall((head % len(body) + body) * 20)  # pipelined; nobody waits for the answers
    assert served.infer("digits", {"inputs": [IMAGE]}).status_code == 200
    assert served.log[said:] == []


# -- the protocol's paths ---------------------------------------------------------------------------------------
def test_health_and_metadata(served: Endpoint) -> None:
    for path, body in {
        "/v2/health/live": {"live": True},
        "/v2/health/ready": {"ready": True, "live": True},
        "/v2/models/digits/ready": {"name": "digits", "ready": True},
        "/v2/models/digits/versions/3/ready": {"name": "digits", "ready": True},
        "/v2/models": {"models": ["digits", "identities", "log", "slow", "two-versions"]},
    }.items():
        found = served.get(path)
        assert (found.status_code, found.json()) == (200, body)
        assert found.headers["content-type"] == "application/json"
    server = served.get("/v2").json()
    assert server["name"] == "winnow"
    assert server["version"]
    assert server["extensions"] == ["binary_tensor_data", "statistics", "model_repository"]
    assert served.get("/v2/models/digits").json() == {
        "name": "digits",
        "versions": ["3"],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, 10]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "probability", "datatype": "FP32", "shape": [-1]},
        ],
    }
    assert served.get("/v2/models/two-versions").json()["versions"] == ["1", "2"]


def test_infer_answers_labels_and_echoes_the_id(served: Endpoint) -> None:
    found = served.infer("digits", {"id": "abc", "inputs": [IMAGE]})
    assert found.status_code == 200
    body = found.json()
    assert (body["model_name"], body["model_version"], body["id"]) == ("digits", "3", "abc")
    logits, label, probability = body["outputs"]
    assert (logits["name"], logits["datatype"], logits["shape"]) == ("logits", "FP32", [1, 10])
    winner = max(range(10), key=lambda i: logits["data"][i])
    assert label == {"name": "label", "datatype": "BYTES", "shape": [1], "data": [str(winner)]}
    assert 0.1 < probability["data"][0] <= 1


def test_infer_with_outputs_chosen_a_batch_and_nested_data(served: Endpoint) -> None:
    rows = {**IMAGE, "shape": [2, 1, 8, 8], "data": [[[[8] * 8] * 8]] * 2}
    body = served.infer("digits", {"inputs": [rows], "outputs": [{"name": "label"}]}).json()
    assert "id" not in body
    assert [output["name"] for output in body["outputs"]] == ["label"]
    assert body["outputs"][0]["shape"] == [2]


def test_infer_takes_what_curl_sends(served: Endpoint) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    found = served.client.post(
        f"{served.url}/v2/models/digits/infer", content=json.dumps({"inputs": [IMAGE]}), headers=form
    )
    assert found.status_code == 200


def test_versions_are_addressed_and_the_rest_goes_to_the_one_in_traffic(served: Endpoint) -> None:
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [5, 5]}]}
    for version, expected in (("1", ("1", 1.0)), ("2", ("2", 2.0)), ("", ("2", 2.0))):
        found = served.infer("two-versions", body, version).json()
        assert (found["model_version"], found["outputs"][0]["data"][0]) == expected


def test_nan_and_infinity_are_answered_as_null(served: Endpoint) -> None:
    found = served.infer("log", {"inputs": [{"name": "x", "shape": [3], "datatype": "FP32", "data": [-1, 0, 1]}]})
    assert found.json()["outputs"][0]["data"] == [None, None, 0.0]


def test_datatypes_without_json_are_refused_by_name(served: Endpoint) -> None:
    found = served.infer("identities", {"inputs": []})
    assert (found.status_code, found.json()["error"][:7]) == (400, "input '")
    tensors = [
        {"name": f"in_{kind}", "shape": [1], "datatype": kind, "data": [value]}
        for kind, value in {
            "BOOL": True,
            "UINT8": 1,
            "INT32": 1,
            "INT64": 1,
            "FP16": 1.0,
            "FP64": 1,
            "BYTES": "a",
        }.items()
    ]
    found = served.infer("identities", {"inputs": tensors})
    assert found.status_code == 501
    assert "binary tensor data" in found.json()["error"]


# -- bad requests -----------------------------------------------------------------------------------------------
PATHS = {
    "/v2/models/nothing": 404,
    "/v2/models/nothing/ready": 404,
    "/v2/models/digits/versions/99": 404,
    "/v2/models/digits/versions/99/ready": 404,
    "/v2/models/digits/versions/latest": 400,
    "/v2/models/digits/versions/-1": 400,
    "/v2/models/..%2f..%2fetc": 404,
    "/v2/models/%2e%2e": 400,
    "/v2/models/a%00b": 400,
    "/v2/models/" + "a" * 65: 400,
    "/v2/models/d%C3%AFgits": 400,
    "/": 404,
    "/v2/": 404,
    "/v2/models/digits/infer": 405,
    "/v2/models/digits/infer/": 404,
    "/v2/models/digits/config": 404,
    "/admin/models": 404,
    "/metrics": 404,
}


@pytest.mark.parametrize("path", PATHS)
def test_wrong_paths_get_an_error_in_json(served: Endpoint, path: str) -> None:
    found = served.get(path)
    assert found.status_code == PATHS[path], found.text
    assert list(found.json()) == ["error"]
    assert "/" not in found.json()["error"] or "etc" not in found.json()["error"]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_wrong_methods(served: Endpoint, method: str) -> None:
    status = 400 if method == "BREW" else 405  # no HTTP method at all: refused by the HTTP parser
    assert served.client.request(method, f"{served.url}/v2/models/digits/infer").status_code == status


@pytest.mark.parametrize(
    ("headers", "content", "status", "message"),
    [
        ({}, b"{", 400, "not valid JSON"),
        ({}, b"", 400, "not valid JSON"),
        ({}, b"[" * 100_000, 400, "not valid JSON"),
        ({}, json.dumps({"inputs": [{**IMAGE, "shape": [2**63 - 1, 1, 8, 8]}]}).encode(), 400, "elements"),
        ({}, json.dumps({"inputs": [{**IMAGE, "shape": [1e3, 1, 8, 8]}]}).encode(), 400, "integers"),
        ({"content-encoding": "gzip"}, b"\x1f\x8b\x08\x00", 400, "ends too early"),
        ({"content-encoding": "gzip"}, b"{}", 400, "not what its content-encoding says"),
        ({"content-encoding": "deflate"}, zlib.compress(b"{}") + b"x", 400, "something follows"),
        ({"content-encoding": "gzip"}, gzip.compress(b" " * (1 << 20)), 413, "when it is unpacked"),
        ({"content-encoding": "br"}, b"{}", 415, "gzip or deflate"),
        ({"inference-header-content-length": "10"}, b"{}", 400, "the body has 2 bytes"),
        ({"inference-header-content-length": "-1"}, b"{}", 400, "length of the JSON part"),
        ({"expect": "a miracle"}, b"{}", 417, "100-continue"),
    ],
)
def test_bad_bodies(served: Endpoint, headers: dict[str, str], content: bytes, status: int, message: str) -> None:
    found = served.client.post(f"{served.url}/v2/models/digits/infer", headers=headers, content=content)
    assert found.status_code == status
    assert message in found.json()["error"]


def test_a_body_that_is_too_large_is_cut_off_without_its_length_too(served: Endpoint) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(17):
            yield b" " * (1 << 20)

    try:
        found = served.client.post(f"{served.url}/v2/models/digits/infer", content=chunks())
    except httpx.WriteError:  # answered and closed while we were still sending
        return
    assert found.status_code == 413


POST = b"POST /v2/models/digits/infer HTTP/1.1\r\nhost: a\r\n"
RAW: dict[str, tuple[bytes, bytes]] = {
    "garbage": (b"\x00\x01\x02\r\n\r\n", b"400"),
    "bad header": (b"GET /v2 HTTP/1.1\r\nno colon\r\n\r\n", b"400"),
    "negative length": (POST + b"content-length: -5\r\n\r\n", b"400"),
    "two lengths": (POST + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}", b"400"),
    "overflowing length": (POST + b"content-length: " + b"9" * 5000 + b"\r\n\r\n", b"400"),
    "long length": (POST + b"content-length: 99999999999\r\n\r\n{", b"413"),
    "bad chunk": (POST + b"transfer-encoding: chunked\r\n\r\nxyz\r\n", b"400"),
    "endless chunk": (POST + b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n", b"400"),
    "non-ascii path": (b"GET /v2/\xff\xfe HTTP/1.1\r\nhost: a\r\n\r\n", b"400"),
    "half a body": (POST + b"content-length: 100\r\n\r\n{", b""),
    "upgrade": (b"GET /v2 HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", b"200"),
}


@pytest.mark.parametrize("case", RAW)
def test_raw_sockets_with_nonsense(served: Endpoint, case: str) -> None:
    sent, status = RAW[case]
    where = urlsplit(served.url)
    with closing(socket.create_connection((where.hostname, where.port), timeout=5)) as connection:
        connection.sendall(sent)
        if not status:
            return
        assert connection.recv(4096).startswith(b"HTTP/1.1 " + status)


# -- the admin listener -----------------------------------------------------------------------------------------
def test_the_admin_listener_takes_only_the_token(served: Endpoint) -> None:
    requests = [
        ("GET", "/admin/models"),
        ("HEAD", "/admin/models"),
        ("PUT", "/admin/models/digits/versions/9"),
        ("DELETE", "/admin/models/digits/versions/3"),
        ("POST", "/admin/models/digits/traffic"),
        ("OPTIONS", "/admin/models"),
        ("GET", "/nothing"),
        ("GET", "/v2"),
    ]
    for method, path in requests:
        for token in ("", "wrong", TOKEN + "x", TOKEN[:-1]):
            found = served.admin(method, path, token=token)
            assert found.status_code == 401, (method, path)
            assert found.headers["www-authenticate"] == "Bearer"
    assert served.admin("GET", "/nothing").status_code == 404


def test_the_admin_listener_lists_what_is_there(served: Endpoint) -> None:
    body = served.admin("GET", "/admin/models").json()
    found = next(model for model in body["models"] if model["model"] == "two-versions")
    assert found["serving"] == "2"
    assert [(v["version"], v["state"]) for v in found["versions"]] == [("1", "ready"), ("2", "ready")]
    assert found["versions"][0]["digest"] == VARIANTS["one"].digest
    assert all(Path(f"/proc/{v['pid']}").exists() for v in found["versions"])


def test_loading_again_is_harmless_and_another_digest_is_a_conflict(served: Endpoint) -> None:
    path = "/admin/models/two-versions/versions/1"
    before = served.admin("GET", "/admin/models").json()
    assert served.admin("PUT", path, {"digest": VARIANTS["one"].digest}).status_code == 200
    conflict = served.admin("PUT", path, {"digest": VARIANTS["two"].digest})
    assert conflict.status_code == 409
    assert VARIANTS["one"].digest[:12] in conflict.json()["error"]
    assert served.admin("GET", "/admin/models").json() == before


def test_a_variant_for_another_cpu_is_refused_with_both_classes_and_the_remedy(served: Endpoint) -> None:
    found = served.admin("PUT", "/admin/models/new/versions/1", {"digest": VARIANTS["alien"].digest})
    assert found.status_code == 422
    assert found.json()["error"].endswith(
        f"'digits' was quantized and validated for CPU class sparc/vis, this machine is {cpu_class()}; run the "
        "pipeline on a machine of this class, or deploy a variant without int8 weights"
    )


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (None, 400, "not valid JSON"),
        ([], 400, "must be a JSON object"),
        ({}, 400, "64 hexadecimal digits"),
        ({"digest": "../../etc/passwd"}, 400, "64 hexadecimal digits"),
        ({"digest": "0" * 64}, 422, "has no variant"),
        ({"digest": "alien"}, 422, "sparc/vis"),
    ],
)
def test_a_load_that_fails_changes_nothing(served: Endpoint, body: Any, status: int, message: str) -> None:
    if isinstance(body, dict) and body.get("digest") == "alien":
        body = {"digest": VARIANTS["alien"].digest}
    before = served.admin("GET", "/admin/models").json()
    found = served.admin("PUT", "/admin/models/new/versions/1", body)
    assert (found.status_code, message in found.json()["error"]) == (status, True), found.text
    assert served.admin("GET", "/admin/models").json() == before
    assert served.get("/v2/models/new").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/admin/models/nothing/traffic", {"version": "1"}, 404),
        ("POST", "/admin/models/digits/traffic", {"version": "9"}, 404),
        ("POST", "/admin/models/digits/traffic", {"version": 3}, 400),
        ("POST", "/admin/models/digits/traffic", {}, 400),
        ("DELETE", "/admin/models/digits/versions/3", None, 409),
        ("DELETE", "/admin/models/digits/versions/9", None, 404),
        ("DELETE", "/admin/models/nothing/versions/1", None, 404),
        ("PUT", "/admin/models/digits/versions/x", {"digest": "0" * 64}, 400),
        ("PUT", "/admin/models/a%20b/versions/1", {"digest": "0" * 64}, 400),
        ("GET", "/admin/models/digits/traffic", None, 405),
    ],
)
def test_admin_requests_that_make_no_sense(served: Endpoint, method: str, path: str, body: Any, status: int) -> None:
    before = served.admin("GET", "/admin/models").json()
    found = served.admin(method, path, body)
    assert found.status_code == status, found.text
    assert found.json()["error"]
    assert served.admin("GET", "/admin/models").json() == before


# -- starting ---------------------------------------------------------------------------------------------------
def start(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "serving"],
        env={**os.environ, "WINNOW_ENDPOINT_PORT": "0", "WINNOW_ADMIN_PORT": "0", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_settings_that_cannot_work_are_refused_at_once(served: Endpoint) -> None:
    taken = str(urlsplit(served.url).port)
    for environment, message in (
        ({"WINNOW_ADMIN_HOST": "0.0.0.0", "WINNOW_ADMIN_TOKEN": ""}, "set WINNOW_ADMIN_TOKEN"),
        ({"WINNOW_ENDPOINT_PORT": "eighty"}, "WINNOW_ENDPOINT_PORT is 'eighty'"),
        ({"WINNOW_ADMIN_PORT": "65536"}, "WINNOW_ADMIN_PORT is '65536'"),
        ({"WINNOW_ENDPOINT_PORT": taken}, f"port {taken}: Address already in use"),
    ):
        done = start(**environment)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_without_a_token_nobody_administers(served: Endpoint, tmp_path: Path) -> None:
    with endpoint(tmp_path, wait=False, WINNOW_ADMIN_TOKEN="") as other:
        for token in ("", "x"):
            found = other.admin("GET", "/admin/models", token=token)
            assert found.status_code == 403
            assert "WINNOW_ADMIN_TOKEN" in found.json()["error"]
        assert other.get("/v2/health/live").status_code == 200
