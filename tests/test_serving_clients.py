"""Clients that nobody here wrote, as they come: what they ask the endpoint, and what they get."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from client_environments import client_python
from conftest import Server
from endpoint_process import Endpoint, endpoint
from onnx_models import digits, publish
from patience import PATIENCE, wait_for
from server_certificate import server_certificate

from model_registry.api_keys import KeyFile
from model_registry.store import Store
from serving.engine import Engine

pytestmark = pytest.mark.slow
SCRIPTS = Path(__file__).parent
ROWS = np.arange(2 * 64, dtype=np.float32).reshape(2, 1, 8, 8) % 17


@pytest.fixture(scope="module")
def served(s3: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Endpoint, Engine]]:
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3.environment, "WINNOW_STORE": "s3://clients"}.items():
            patch.setenv(name, value)
        store = Store.from_environment()
        store.prepare()
        variant = publish(store, folder / "digits", digits(folder / "digits"))
        with endpoint(folder / "home", WINNOW_GRPC_PORT="0") as running:
            running.deploy("digits", "3", variant.digest)
            yield running, Engine(folder / "digits", variant)


@pytest.fixture(scope="module")
def theirs(request: pytest.FixtureRequest) -> str:
    """The Python of an environment with tritonclient: 140 MB, installed once, in ten seconds or so."""
    return client_python(request, "tritonclient[http,grpc]==2.73.0")


@pytest.fixture(scope="module")
def others(request: pytest.FixtureRequest) -> str:
    """The same with KServe's and open-inference's clients: 330 MB, in half a minute, for KServe's brings its server."""
    return client_python(request, "kserve==0.21.0", "open-inference-openapi==2.0.0.1")


def asked(python: str, script: str, *arguments: str) -> dict[str, Any]:
    """What the script's client was answered, by question."""
    command = [python, str(SCRIPTS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def grpc_of(running: Endpoint) -> dict[str, Any]:
    """What the admin listener says of gRPC, once it is ready."""
    wait_for(lambda: running.admin("GET", "/admin/models").json()["grpc"]["state"] == "ready")
    found: dict[str, Any] = running.admin("GET", "/admin/models").json()["grpc"]
    return found


@pytest.fixture(scope="module")
def tritons(served: tuple[Endpoint, Engine], theirs: str) -> dict[str, Any]:
    return asked(theirs, "triton_script.py", urlsplit(served[0].url).netloc, "digits")


@pytest.fixture(scope="module")
def by_grpc(served: tuple[Endpoint, Engine], theirs: str, tritons: dict[str, Any]) -> dict[str, Any]:
    """After ``tritons``, which counts."""
    return asked(theirs, "triton_grpc_script.py", grpc_of(served[0])["address"], "digits")


@pytest.fixture(scope="module")
def kserves(served: tuple[Endpoint, Engine], others: str) -> dict[str, Any]:
    return asked(others, "kserve_script.py", served[0].url, grpc_of(served[0])["address"], "digits")


@pytest.fixture(scope="module")
def open_inferences(served: tuple[Endpoint, Engine], others: str) -> dict[str, Any]:
    return asked(others, "open_inference_script.py", served[0].url, "digits")


def as_the_engine_answers(served: tuple[Endpoint, Engine], found: dict[str, Any]) -> bool:
    """Whether a client got what the engine in our own process says."""
    wanted = served[1].run({"image": ROWS})
    np.testing.assert_allclose(found["logits"], wanted["logits"], rtol=1e-5)
    return bool(found["label"] == [label.decode() for label in wanted["label"]])


@pytest.mark.parametrize(
    "question",
    [
        "json",
        "binary",
        "binary in, json out",
        "json in, binary out",
        "as the client does by itself",
        "everything",
        "gzip",
        "deflate",
        "in the background",
        "asyncio",
    ],
)
def test_tritonclient_gets_what_the_engine_answers(
    served: tuple[Endpoint, Engine], tritons: dict[str, Any], question: str
) -> None:
    found = tritons[question]
    assert as_the_engine_answers(served, found)
    assert found["version"] == "3"
    assert found["id"] == ("a7" if question == "everything" else None)


def test_tritonclient_learns_what_there_is(tritons: dict[str, Any]) -> None:
    assert [tritons[name] for name in ("live", "ready", "model ready", "no such model")] == [True, True, True, False]
    assert "binary_tensor_data" in tritons["server"]["extensions"]
    assert tritons["metadata"]["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert tritons["index"] == [{"name": "digits", "version": "3", "state": "READY", "reason": ""}]
    (stats,) = tritons["statistics"]["model_stats"]
    assert stats["inference_count"] >= 2 * 10
    assert stats["inference_stats"]["success"]["count"] >= 10
    assert stats["inference_stats"]["fail"]["count"] == 3
    assert stats["inference_stats"]["compute_infer"]["ns"] > 0


def test_what_is_not_offered_is_refused_by_name(tritons: dict[str, Any]) -> None:
    assert "'priority'" in tritons["a priority"]["error"]
    assert "'sequence_id'" in tritons["a sequence"]["error"]
    assert "NaN or infinity" in tritons["NaN"]["error"]


@pytest.mark.parametrize(
    "question", ["as the client does by itself", "everything", "in the background", "typed contents"]
)
def test_tritonclient_gets_the_same_by_grpc(
    served: tuple[Endpoint, Engine], by_grpc: dict[str, Any], question: str
) -> None:
    found = by_grpc[question]
    assert as_the_engine_answers(served, found)
    assert found["version"] == "3"
    assert found["id"] == ("a7" if question == "everything" else "")


def test_tritonclient_learns_what_there_is_by_grpc(by_grpc: dict[str, Any]) -> None:
    assert [by_grpc[name] for name in ("live", "ready", "model ready", "no such model")] == [True, True, True, False]
    assert by_grpc["server"]["name"] == "winnow"
    assert by_grpc["metadata"]["inputs"] == [{"name": "image", "datatype": "FP32", "shape": ["-1", "1", "8", "8"]}]
    assert by_grpc["metadata"]["versions"] == ["3"]
    assert by_grpc["index"] == {"models": [{"name": "digits", "version": "3", "state": "READY"}]}
    (stats,) = by_grpc["statistics"]["model_stats"]
    assert int(stats["inference_stats"]["compute_infer"]["ns"]) > 0


@pytest.mark.parametrize(
    ("question", "code", "text"),
    [
        ("unknown model", "NOT_FOUND", "no model 'nothing'"),
        ("another path", "INVALID_ARGUMENT", "model name"),
        ("wrong shape", "INVALID_ARGUMENT", "shape of input 'image'"),
        ("NaN", "INVALID_ARGUMENT", "NaN or infinity"),
        ("both contents", "INVALID_ARGUMENT", "contents beside raw_input_contents"),
        ("two tensors for one", "INVALID_ARGUMENT", "2 tensors for 1 inputs"),
        ("malformed", "INVALID_ARGUMENT", "not a ModelInferRequest"),
        ("no message", "INVALID_ARGUMENT", "has no message"),
        ("a priority", "UNIMPLEMENTED", "'priority'"),
        ("no configuration", "UNIMPLEMENTED", ""),
        ("too large", "RESOURCE_EXHAUSTED", ""),
        ("packed", "UNIMPLEMENTED", ""),
        ("no time", "DEADLINE_EXCEEDED", "its timeout is 1 us"),
    ],
)
def test_errors_have_grpc_s_codes(by_grpc: dict[str, Any], question: str, code: str, text: str) -> None:
    found = by_grpc[question]
    assert found["status"] == f"StatusCode.{code}" and text in found["error"], found


@pytest.mark.parametrize(
    "question", ["json", "binary", "a dictionary", "typed contents by grpc", "raw contents by grpc"]
)
def test_kserve_s_clients_get_what_the_engine_answers(
    served: tuple[Endpoint, Engine], kserves: dict[str, Any], question: str
) -> None:
    found = kserves[question]
    assert as_the_engine_answers(served, found)
    assert (found["id"], found["version"]) == ("a7", "3" if "grpc" in question else None), "it reads none over HTTP"


def test_kserve_s_clients_learn_what_is_there_and_what_is_wrong(kserves: dict[str, Any]) -> None:
    for way in ("", " by grpc"):
        assert [kserves[f"{name}{way}"] for name in ("live", "ready", "model ready")] == [True, True, True]
    assert kserves["no such model"] is False
    statuses = {"wrong shape": (400, "INVALID_ARGUMENT"), "unknown model": (404, "NOT_FOUND")}
    for question, (status, code) in statuses.items():
        http, grpc = kserves[question], kserves[f"{question} by grpc"]
        assert (http["status"], grpc["status"]) == (status, f"StatusCode.{code}")
        text = "shape of input 'image'" if status == 400 else "no model 'nothing'"
        assert text in http["error"] and text in grpc["error"]


@pytest.mark.parametrize("question", ["nested", "flat", "of a version", "asyncio"])
def test_open_inference_s_client_gets_what_the_engine_answers(
    served: tuple[Endpoint, Engine], open_inferences: dict[str, Any], question: str
) -> None:
    found = open_inferences[question]
    assert as_the_engine_answers(served, found)
    assert (found["id"], found["version"]) == ("a7" if question == "nested" else None, "3")


def test_open_inference_s_client_learns_what_is_there_and_what_is_wrong(open_inferences: dict[str, Any]) -> None:
    ready = [open_inferences[name] for name in ("live", "ready", "model ready", "version ready")]
    assert ready == [None] * 4, "it raises otherwise"
    assert open_inferences["server"]["name"] == "winnow"
    metadata = open_inferences["metadata"]
    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert [metadata[name] for name in ("name", "versions")] == ["digits", ["3"]]
    assert open_inferences["no such model"]["status"] == open_inferences["unknown model"]["status"] == 404
    assert open_inferences["wrong shape"]["status"] == 400
    assert "shape of input 'image'" in open_inferences["wrong shape"]["error"]


def test_what_is_refused_takes_no_memory(served: tuple[Endpoint, Engine], by_grpc: dict[str, Any]) -> None:
    """Of a message that is 256 MiB when unpacked, and of one that is too long."""
    status = Path(f"/proc/{grpc_of(served[0])['pid']}/status").read_text()
    peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])
    assert peak < 150_000


def test_a_killed_grpc_process_is_back_and_http_never_left(
    served: tuple[Endpoint, Engine], theirs: str, by_grpc: dict[str, Any]
) -> None:
    running, _ = served
    before = grpc_of(running)
    os.kill(before["pid"], signal.SIGKILL)
    wait_for(lambda: running.admin("GET", "/admin/models").json()["grpc"]["pid"] != before["pid"])
    assert running.get("/v2/models/digits/ready").status_code == 200
    after = grpc_of(running)
    assert (after["address"], after["restarts"]) == (before["address"], before["restarts"] + 1)
    assert any("gRPC: its process ended with SIGKILL" in line for line in running.log)
    again = asked(theirs, "triton_grpc_script.py", after["address"], "digits")
    assert again["everything"] == by_grpc["everything"]


def test_grpc_with_keys_and_tls(served: tuple[Endpoint, Engine], theirs: str, tmp_path: Path) -> None:
    """By the rules of HTTP, and with its certificate; the process ends with the endpoint."""
    running, _ = served
    certificate, key, _ = server_certificate(tmp_path / "tls", "server")
    text = KeyFile(tmp_path / "home" / "keys.json").add("a", models=("digits",))[1]
    tls: dict[str, Any] = {
        "WINNOW_TLS_CERTIFICATE": str(certificate),
        "WINNOW_TLS_KEY": str(key),
        "WINNOW_GRPC_PORT": "0",
    }
    with endpoint(tmp_path / "home", wait=False, **tls) as secured:
        secured.deploy("digits", "3", running.version("digits", "3")["digest"])
        grpc = grpc_of(secured)
        address = grpc["address"].replace("127.0.0.1", "localhost")
        found = asked(theirs, "triton_grpc_script.py", address, "digits", str(certificate), text)
        assert found["everything"]["version"] == "3"
        assert found["unknown model"]["status"] == "StatusCode.PERMISSION_DENIED"
        assert found["a foreign key"]["status"] == "StatusCode.UNAUTHENTICATED"
        assert text not in "".join(secured.log)
        secured.process.kill()
        wait_for(lambda: not Path(f"/proc/{grpc['pid']}").exists())
