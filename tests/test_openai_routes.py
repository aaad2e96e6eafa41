"""Continuing text over real sockets: streams, hang-ups, kills, keys, and OpenAI's own client."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from client_environments import client_python
from conftest import Server
from endpoint_process import Endpoint, endpoint
from onnx_models import digits, publish
from patience import PATIENCE, wait_for
from text_variants import reading
from token_models import token_model

from model_registry.api_keys import KeyFile
from model_registry.store import Store

pytestmark = pytest.mark.slow
SAID = [{"role": "user", "content": "The dog"}]
LONG = {"model": "talker", "prompt": "The quick", "max_tokens": 900, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def served(s3: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("talkers")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3.environment, "WINNOW_STORE": "s3://talkers"}.items():
            patch.setenv(name, value)
        store = Store.from_environment()
        store.prepare()
        talker = publish(store, folder / "talker" / "variant", token_model(folder / "talker", context=1024))
        plain = publish(store, folder / "digits", digits(folder / "digits"))
        vectors = publish(store, folder / "vectors", reading(folder / "vectors"))
        with endpoint(folder / "home") as running:
            running.deploy("talker", "1", talker.digest)
            running.deploy("digits", "1", plain.digest)
            running.deploy("vectors", "1", vectors.digest)
            yield running


def streamed(served: Endpoint, path: str, body: dict[str, Any], stop: int = 0) -> str:
    """The text of a stream's events, one way or another; at most ``stop`` of them."""
    text, count = "", 0
    with httpx.stream("POST", f"{served.url}{path}", json=body, timeout=PATIENCE) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8", answer.read()
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            assert "error" not in event, event
            choices = event.get("choices", [event])
            text += "".join(
                c.get("text") or c.get("text_output") or c.get("delta", {}).get("content", "") for c in choices
            )
            count += 1
            if count == stop:
                break
    return text


def test_openai_s_own_client_gets_what_it_asks_for(served: Endpoint, request: pytest.FixtureRequest) -> None:
    python = client_python(request, "openai==3.57.0")
    script = str(Path(__file__).parent / "openai_script.py")
    done = subprocess.run(
        [python, script, served.url, "talker", "none"], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["models"] == ["talker", "vectors"]
    assert found["vectors"] == found["vectors as numbers"] and len(found["vectors"]) == 2
    body = {"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["good", "the film was good"]}]}
    assert [value for row in found["vectors"] for value in row] == served.infer("vectors", body).json()["outputs"][0][
        "data"
    ]
    assert found["chat"] == found["streamed"] and len(found["chat"]) > 3
    assert found["logprobs"] == [2] * 9 and found["stream usage"] == 9 and found["usage"] > 9
    assert found["predicted"][0] == found["predicted wrongly"][0]  # a prediction decides nothing
    assert isinstance(found["predicted"][1], int)
    assert found["echo"] == [[True, False, False], [True, False]]
    assert isinstance(json.loads(found["schema"])["a"], bool)
    assert {name: kind for name, (kind, _) in found["errors"].items()} == {
        "model": "NotFoundError",
        "tools": "BadRequestError",
        "length": "BadRequestError",
    }
    assert "100000 more are asked for; this model has context for 1024" in found["errors"]["length"][1]


def test_all_ways_to_ask_give_the_same_text(served: Endpoint) -> None:
    body = {"model": "talker", "prompt": "The quick", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    whole = served.client.post(f"{served.url}/v1/completions", json=body).json()
    text = whole["choices"][0]["text"]
    assert whole["choices"][0]["finish_reason"] == "length" and whole["usage"]["completion_tokens"] == 12
    assert streamed(served, "/v1/completions", {**body, "stream": True}) == text
    v2 = {
        "text_input": "The quick",
        "parameters": {"max_tokens": 12, "temperature": 0, "ignore_eos": True},
    }
    one = served.client.post(f"{served.url}/v2/models/talker/generate", json=v2).json()
    assert one == {"model_name": "talker", "model_version": "1", "text_output": text}
    assert streamed(served, "/v2/models/talker/versions/1/generate_stream", v2) == text
    several = served.client.post(f"{served.url}/v1/completions", json={**body, "prompt": ["a", "The quick"], "n": 2})
    assert [choice["text"] for choice in several.json()["choices"]][2:] == [text, text]


def test_texts_that_become_vectors_are_counted_in_tokens(served: Endpoint) -> None:
    """The model answers how many tokens it was given, filling left out."""

    def told() -> float:
        lines = served.admin("GET", "/metrics").text.splitlines()
        kinds = [line for line in lines if line.startswith("winnow_tokens_total{") and 'model="vectors"' in line]
        assert all('kind="prompt"' in line for line in kinds)
        return sum(float(line.rpartition(" ")[2]) for line in kinds)

    before = told()
    for texts in ("red", ["red green", "a b c d"]):
        answer = served.client.post(f"{served.url}/v1/embeddings", json={"model": "vectors", "input": texts}).json()
        counts = [int(each["embedding"][0]) for each in answer["data"]]
        assert answer["usage"] == {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}
        before += sum(counts)
    assert min(counts) > 2 and told() == before


def test_it_is_scored_like_any_model_too(served: Endpoint) -> None:
    rows = {"inputs": [{"name": "tokens", "shape": [2, 3], "datatype": "INT64", "data": [5, 6, 7, 8, 9, 10]}]}
    answer = served.infer("talker", rows).json()
    assert answer["outputs"][0]["name"] == "log_probabilities" and answer["outputs"][0]["shape"] == [2, 2]
    echo = {"model": "talker", "prompt": [5, 6, 7], "echo": True, "logprobs": 0, "max_tokens": 0}
    told = served.client.post(f"{served.url}/v1/completions", json=echo).json()["choices"][0]["logprobs"]
    assert told["token_logprobs"][1:] == pytest.approx(answer["outputs"][0]["data"][:2], abs=1e-4)


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/completions", {"model": "digits", "prompt": "x"}, 400, "does not continue text; ask it at /v2/models"),
        ("/v1/completions", {"model": "nobody", "prompt": "x"}, 404, "there is no model 'nobody'"),
        ("/v1/completions", {"model": "talker", "prompt": "x" * 70_000}, 400, "longer than the context of 1024"),
        ("/v1/chat/completions", {"model": "talker", "messages": 3}, 400, "messages must be a list"),
        ("/v1/embeddings", {"model": "talker", "input": "x"}, 400, "does not make vectors of texts"),
        ("/v1/embeddings", {"model": "vectors", "input": [[5, 6]]}, 400, "tokens are not taken here"),
        ("/v1/embeddings", {"model": "vectors", "input": [""]}, 400, "an empty text"),
        ("/v1/embeddings", {"model": "vectors", "input": ["a"] * 2049}, 400, "2049 texts; at most 2048"),
        ("/v1/embeddings", {"model": "vectors", "input": "a", "dimensions": 8}, 400, "dimensions is not offered"),
        (
            "/v1/embeddings",
            {"model": "vectors", "input": "a", "encoding_format": "hex"},
            400,
            "must be float or base64",
        ),
        ("/v2/models/talker/generate", {"text_input": 3}, 400, "text_input must be text"),
        ("/v2/models/digits/generate", {"text_input": "x"}, 400, "does not continue text"),
    ],
)
def test_what_is_refused(served: Endpoint, path: str, body: Any, status: int, says: str) -> None:
    answer = served.client.post(f"{served.url}{path}", json=body)
    assert answer.status_code == status
    told = answer.json()["error"]
    assert says in (told["message"] if path.startswith("/v1") else told)


def test_a_client_that_hangs_up_frees_its_slot(served: Endpoint) -> None:
    """As many as there are slots hang up after a piece each; the next one does not wait for what they asked for."""
    for _ in range(20):
        assert streamed(served, "/v1/completions", {**LONG, "stream": True}, stop=2)
    short = {**LONG, "max_tokens": 3}
    assert served.client.post(f"{served.url}/v1/completions", json=short).status_code == 200
    pid = served.version("talker", "1")["pid"]

    def at_rest() -> bool:
        before = cpu_ticks(pid)
        threading.Event().wait(0.2)
        return cpu_ticks(pid) == before

    wait_for(at_rest)  # nobody's text is being continued any more


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_stream_goes_on_where_it_was_when_its_engine_is_killed(served: Endpoint) -> None:
    body = {**LONG, "max_tokens": 400, "temperature": 0.8, "seed": 3}  # drawn, and yet the same
    whole = served.client.post(f"{served.url}/v1/completions", json=body).json()["choices"][0]["text"]
    restarts = served.version("talker", "1")["restarts"]
    said, killed = "", False
    with httpx.stream(
        "POST", f"{served.url}/v1/completions", json={**body, "stream": True}, timeout=PATIENCE
    ) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                said += json.loads(line[6:])["choices"][0]["text"]
            if len(said) > 20 and not killed:
                killed = True
                os.kill(served.version("talker", "1")["pid"], signal.SIGKILL)
    assert said == whole
    assert served.version("talker", "1")["restarts"] == restarts + 1


def test_clients_of_http_1_0_get_streams_too(served: Endpoint) -> None:
    """Pieces as they are, to the connection's end: they know no chunks."""
    host = urlsplit(served.url)
    body = json.dumps({**LONG, "max_tokens": 5, "stream": True}).encode()
    with socket.create_connection((host.hostname, host.port), timeout=PATIENCE) as client:
        client.sendall(b"POST /v1/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        said = b""
        while data := client.recv(1 << 16):
            said += data
    head, _, events = said.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower() and b"connection: close" in head.lower()
    assert events.startswith(b"data: {") and events.endswith(b"data: [DONE]\n\n")


def test_a_connection_is_kept_after_a_stream(served: Endpoint) -> None:
    with httpx.Client(timeout=PATIENCE) as client:
        for _ in range(3):
            with client.stream(
                "POST", f"{served.url}/v1/completions", json={**LONG, "max_tokens": 3, "stream": True}
            ) as answer:
                assert answer.read().endswith(b"data: [DONE]\n\n")
        (pool,) = client._transport._pool.connections  # type: ignore[attr-defined]
        assert pool.is_idle()


def test_keys_are_asked_for_by_model(store: Store, tmp_path: Path) -> None:
    talker = publish(store, tmp_path / "talker" / "variant", token_model(tmp_path / "talker"))
    with endpoint(tmp_path / "home") as running:
        keys = KeyFile(tmp_path / "home" / "keys.json")
        _, mine = keys.add(name="mine", models=("talker",), actions=("infer",))
        _, other = keys.add(name="other", models=("other",), actions=("infer",))
        running.deploy("talker", "1", talker.digest)
        body = {"model": "talker", "prompt": "x", "max_tokens": 2}

        def asked(key: str) -> int:
            lines = {"authorization": f"Bearer {key}"} if key else {}
            return running.client.post(f"{running.url}/v1/completions", json=body, headers=lines).status_code

        wait_for(lambda: asked("") == 401)
        assert (asked(mine), asked(other)) == (200, 403)
