"""The client that users import, and the command that asks for them: against a real endpoint, and one that hangs up."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import Server
from endpoint_process import Endpoint, endpoint
from onnx_models import answer, digits, filled, identities, publish
from patience import PATIENCE
from winnow_command import WINNOW, environment

import winnow
from model_registry.api_keys import KeyFile
from model_registry.store import Store
from serving.engine import Engine
from serving.loaded_model import LoadedModel

ROWS = (np.arange(3 * 64, dtype=np.float32).reshape(3, 1, 8, 8) * 7) % 17


class Served(NamedTuple):
    """An endpoint, and the same models in this process."""

    endpoint: Endpoint
    local: dict[str, LoadedModel]
    key: str
    store: Store


@pytest.fixture(scope="module")
def served(s3: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("models")
    variants = {
        "digits": digits(folder / "digits"),
        "gaps": filled(folder / "gaps", missing=["x"]),
        "kinds": identities(folder / "kinds"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3.environment, "WINNOW_STORE": "s3://predictions"}.items():
            patch.setenv(name, value)
        store = Store.from_environment()
        store.prepare()
        (folder / "home").mkdir()
        keys = KeyFile(folder / "home" / "keys.json")
        _, key = keys.add("tests", models=("*",), actions=("infer", "read"), rate=None, burst=None, days=None)
        with endpoint(folder / "home") as running:
            for name, variant in variants.items():
                publish(store, folder / name, variant)
                running.deploy(name, "3", variant.digest)
            local = {name: LoadedModel(Engine(folder / name, v), name) for name, v in variants.items()}
            yield Served(running, local, key, store)


@pytest.fixture
def client(served: Served) -> Iterator[winnow.Client]:
    with winnow.Client(served.endpoint.url, served.key) as made:
        yield made


def test_it_answers_as_the_model_in_this_process_does(served: Served, client: winnow.Client) -> None:
    one, batch = client.predict("digits", ROWS[0]), client.predict_batch("digits", ROWS)
    wanted = served.local["digits"].predict_batch(ROWS)
    assert list(batch) == list(wanted)
    for name, values in wanted.items():
        assert (batch[name].dtype, batch[name].shape) == (values.dtype, values.shape)
        assert batch[name].flags.writeable
    np.testing.assert_allclose(batch["logits"], wanted["logits"], rtol=1e-5)
    assert batch["label"].tolist() == wanted["label"].tolist()
    expected = served.local["digits"].predict(ROWS[0])
    assert one["label"] == expected["label"] and type(one["probability"]) is float
    assert one["logits"].shape == (10,)
    assert client.predict("digits", {"image": ROWS[0].tolist()}, version=3)["label"] == one["label"]


def test_every_datatype_goes_there_and_back(served: Served, client: winnow.Client) -> None:
    given: dict[str, Any] = {
        "in_BOOL": [True, False],
        "in_UINT8": [0, 255],
        "in_INT32": np.array([-1, 7], ">i4"),
        "in_INT64": [-(1 << 60), 3],
        "in_FP16": [0.5, -2],
        "in_FP64": [0.1, 1e300],
        "in_BYTES": ["ä, b", ""],
    }
    found = client.predict_batch("kinds", given)
    assert {name: values.tolist() for name, values in found.items()} == {
        name.replace("in_", "out_"): np.asarray(values).tolist() for name, values in given.items()
    }
    assert {n: v.dtype for n, v in found.items()} == {
        n: v.dtype for n, v in served.local["kinds"].predict_batch(given).items()
    }
    assert list(client.predict_batch("kinds", given, outputs=["out_BYTES", "out_BOOL"], timeout=20)) == [
        "out_BYTES",
        "out_BOOL",
    ]


def test_missing_values_are_nan_or_none(client: winnow.Client) -> None:
    assert client.predict_batch("gaps", [1.5, None, float("nan")])["y"].tolist() == [1.5, 7, 7]
    assert client.predict("gaps", None) == {"y": 7.0}


@pytest.mark.parametrize(
    ("model", "given", "text"),
    [
        ("digits", ROWS[0], r"input 'image' of digits takes FP32\[-1, 1, 8, 8\] .* got \[1, 8, 8\]"),
        ("digits", [["x"]], "takes numbers"),
        ("digits", {"picture": ROWS}, r"has the inputs \['image'\], got \['picture'\]"),
        ("digits", [[1], [1, 2]], "differ in their shape"),
        ("kinds", [1], "give a mapping with these keys"),
    ],
)
def test_what_does_not_fit_is_refused_as_in_this_process(
    served: Served, client: winnow.Client, model: str, given: Any, text: str
) -> None:
    for asked in (client.predict_batch, lambda name, rows: served.local[name].predict_batch(rows)):
        with pytest.raises(winnow.InvalidRequest, match=text):
            asked(model, given)


def test_refusals_are_named_by_their_status(served: Served, client: winnow.Client, tmp_path: Path) -> None:
    with pytest.raises(winnow.NotServed, match="there is no model 'digit'; this endpoint has"):
        client.predict("digit", ROWS[0])
    with pytest.raises(winnow.NotServed, match="no version"):
        client.predict("digits", ROWS[0], version=9)
    with pytest.raises(winnow.InvalidRequest, match="no output 'nope'") as caught:
        client.predict_batch("digits", ROWS, outputs=["nope"])
    assert isinstance(caught.value, winnow.EndpointRefused) and caught.value.status == 400
    with pytest.raises(winnow.InvalidRequest, match="NaN or infinity"):
        client.predict("digits", np.full((1, 8, 8), np.nan))
    with pytest.raises(winnow.InvalidRequest, match="must match"):
        client.metadata("a model")
    for path in ("", "..", "digits/versions/3"):
        with pytest.raises(winnow.InvalidRequest, match="no name of a model"):
            client.metadata(path)
    with pytest.raises(winnow.EndpointRefused, match="fewer samples") as large:
        client.predict_batch("digits", np.zeros((70_000, 1, 8, 8), np.float32))
    assert large.value.status == 413
    with winnow.Client(served.endpoint.url, "wrong") as stranger, pytest.raises(winnow.KeyRefused, match="401"):
        stranger.models()
    with (
        winnow.Client("http://127.0.0.1:9") as nobody,
        pytest.raises(winnow.EndpointUnreachable, match="winnow status"),
    ):
        nobody.ready()
    for wrong in ("ftp://127.0.0.1", "127.0.0.1:8080", "http://h:port", "http://"):
        with pytest.raises(winnow.EndpointError, match="no URL of an endpoint"):
            winnow.Client(wrong)


def test_it_says_what_there_is(client: winnow.Client) -> None:
    assert client.models() == ["digits", "gaps", "kinds"]
    told = client.metadata("digits")
    assert (told.name, told.versions, told.inputs[0].shape) == ("digits", (3,), (-1, 1, 8, 8))
    assert [spec.name for spec in told.outputs] == ["logits", "label", "probability"]
    assert client.metadata("gaps").inputs[0].missing
    assert (client.ready(), client.ready("digits"), client.ready("nobody")) == (True, True, False)


def test_the_environment_says_where_and_who(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_ENDPOINT", served.endpoint.url)
    monkeypatch.setenv("WINNOW_KEY", served.key)
    with winnow.Client() as found:
        assert found.models() == ["digits", "gaps", "kinds"]


def test_asyncio_does_the_same(served: Served, client: winnow.Client) -> None:
    async def ask() -> list[Any]:
        async with winnow.AsyncClient(served.endpoint.url, served.key) as there:
            with pytest.raises(winnow.NotServed):
                await there.predict("digit", ROWS[0])
            many = await asyncio.gather(*(there.predict("digits", row) for row in ROWS))
            batch = await there.predict_batch("digits", ROWS, outputs=["label"])
            raw = await there.infer("gaps", _request([1.5, None]))
            told = (await there.models(), await there.metadata("digits"), await there.ready("digits"))
            return [[one["label"] for one in many], batch["label"].tolist(), raw["y"].tolist(), *told]

    labels = client.predict_batch("digits", ROWS)["label"].tolist()
    assert asyncio.run(ask()) == [labels, labels, [1.5, 7], client.models(), client.metadata("digits"), True]


def test_both_clients_have_the_same_calls() -> None:
    for name, call in vars(winnow.Client).items():
        if not name.startswith("_") or name == "__init__":
            assert inspect.signature(call) == inspect.signature(getattr(winnow.AsyncClient, name)), name


def test_another_version_s_inputs_are_learnt(served: Served, client: winnow.Client, tmp_path: Path) -> None:
    old = publish(served.store, tmp_path / "old", answer(tmp_path / "old", 1))
    new = publish(served.store, tmp_path / "new", filled(tmp_path / "new"))
    served.endpoint.deploy("moved", "1", old.digest)
    try:
        assert client.predict("moved", [1, 2])["y"].tolist() == [1, 1]
        served.endpoint.deploy("moved", "2", new.digest)
        assert client.predict("moved", 5) == {"y": 5.0}  # what is given does not fit what was known
    finally:
        served.endpoint.admin("POST", "/admin/models/moved/traffic", {"version": None})
        for version in "12":
            served.endpoint.admin("DELETE", f"/admin/models/moved/versions/{version}")


# -- a server that does as it is told ---------------------------------------------------------------------------------
@contextmanager
def scripted(*turns: bytes) -> Iterator[tuple[str, list[str]]]:
    """A server that answers one request after the other; an empty answer closes the connection instead.

    Yields its URL, and the first lines of what it was asked.
    """
    asked: list[str] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, stream = None, None
        for turn in turns:
            line = b""
            while not line:
                if stream is None:
                    try:
                        connection, _ = listener.accept()
                    except OSError:  # the test is over
                        return
                    stream = connection.makefile("rwb")
                line = stream.readline()
                if not line:
                    stream.close()
                    stream = None
            assert connection is not None and stream is not None
            asked.append(line.decode().split(" HTTP")[0])
            while stream.readline().strip():
                pass
            if turn:
                stream.write(turn)
                stream.flush()
            if not turn or b"connection: close" in turn:
                stream.close()
                connection.close()
                stream = None
        if stream is not None and connection is not None:
            stream.close()
            connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(timeout=10)
        assert not thread.is_alive()


def told(status: str, body: Any, *lines: str) -> bytes:
    text = json.dumps(body).encode()
    return "\r\n".join([f"HTTP/1.1 {status}", f"content-length: {len(text)}", *lines, "", ""]).encode() + text


MODELS = told("200 OK", {"models": ["m"]})


def call_models(url: str, times: int, kind: str) -> list[list[str]]:
    if kind == "waits":
        with winnow.Client(url, timeout=5) as client:
            return [client.models() for _ in range(times)]

    async def ask() -> list[list[str]]:
        async with winnow.AsyncClient(url, timeout=5) as client:
            return [await client.models() for _ in range(times)]

    return asyncio.run(ask())


@pytest.mark.parametrize("kind", ["waits", "awaits"])
def test_a_connection_that_was_closed_meanwhile_costs_nothing(kind: str) -> None:
    with scripted(MODELS, b"", MODELS) as (url, asked):
        assert call_models(url, 2, kind) == [["m"], ["m"]]
    assert len(asked) == 3


@pytest.mark.parametrize(("turns", "calls", "seen"), [((b"",), 1, 1), ((MODELS, b"", b""), 2, 3)])
def test_a_server_that_always_hangs_up_is_not_asked_again(turns: tuple[bytes, ...], calls: int, seen: int) -> None:
    with scripted(*turns) as (url, asked), pytest.raises(winnow.EndpointUnreachable, match="no answer"):
        call_models(url, calls, "waits")
    assert len(asked) == seen


@pytest.mark.parametrize("kind", ["waits", "awaits"])
@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
def test_a_pause_that_is_asked_for_is_made_once(monkeypatch: pytest.MonkeyPatch, kind: str, status: str) -> None:
    paused: list[float] = []

    async def sleep(seconds: float) -> None:
        paused.append(seconds)

    monkeypatch.setattr("flows.calls.inference_client.time.sleep", paused.append)
    monkeypatch.setattr("flows.calls.inference_client.asyncio.sleep", sleep)
    busy = told(status, {"error": "later"}, "retry-after: 3")
    with scripted(busy, MODELS) as (url, _):
        assert call_models(url, 1, kind) == [["m"]]
    assert paused == [3]
    with scripted(busy, busy) as (url, asked), pytest.raises(winnow.EndpointBusy, match="later") as caught:
        call_models(url, 1, kind)
    assert paused == [3, 3] and len(asked) == 2
    assert (caught.value.retry_after, caught.value.status) == (3, int(status[:3]))


@pytest.mark.parametrize("after", ["retry-after: 6", "retry-after: tomorrow", "x: y"])
def test_a_pause_beyond_the_client_s_time_is_not_made(after: str) -> None:
    with scripted(told("503 No", {"error": "later"}, after)) as (url, asked), pytest.raises(winnow.EndpointBusy):
        call_models(url, 1, "waits")
    assert len(asked) == 1


def test_one_that_is_not_ready_is_not_waited_for() -> None:
    busy = told("503 Service Unavailable", {"error": "later"}, "retry-after: 3")
    with scripted(busy) as (url, asked), winnow.Client(url) as client:
        assert client.ready() is False
    assert len(asked) == 1


@pytest.mark.parametrize("body", ["text", [1], {}, {"models": 3}])
def test_something_else_that_answers_is_named(body: Any) -> None:
    with scripted(told("200 OK", body)) as (url, _), pytest.raises(winnow.EndpointError, match="no endpoint"):
        call_models(url, 1, "waits")


# -- winnow predict -----------------------------------------------------------------------------------------------
def _request(values: list[Any]) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [len(values)], "data": values}]}


def predict(
    served: Served, folder: Path, *arguments: str, given: bytes = b"", **more: str
) -> subprocess.CompletedProcess[bytes]:
    variables = {"WINNOW_HOME": str(folder / "home"), "WINNOW_ENDPOINT": served.endpoint.url, **more}
    return subprocess.run(
        [*WINNOW, "predict", *arguments],
        input=given,
        cwd=folder,
        env=environment(**{"WINNOW_KEY": served.key, **variables}),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )


def lines(done: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_command_prints_a_line_per_row(served: Served, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", ROWS)
    found = lines(predict(served, tmp_path, "digits", "--input", "rows.npy", "--version", "3"))
    wanted = served.local["digits"].predict_batch(ROWS)
    assert [row["label"] for row in found] == wanted["label"].tolist()
    assert [list(row) for row in found] == [["label", "probability", "logits"]] * 3
    np.testing.assert_allclose([row["logits"] for row in found], wanted["logits"], rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        (b"[1.5, null]", [1.5, 7]),
        (b'{"x": null}', [7]),
        (b'[{"x": 2}, {"x": 3}]', [2, 3]),
        (json.dumps(_request([4, None])).encode(), [4, 7]),
        (b'\xef\xbb\xbfx\r\n1.5\r\n""\r\n', [1.5, 7]),
    ],
    ids=["list", "row", "rows", "request", "csv"],
)
def test_the_command_reads_what_users_have(served: Served, tmp_path: Path, given: bytes, rows: list[float]) -> None:
    done = predict(served, tmp_path, "gaps", "--input", "-", "--url", served.endpoint.url, given=given)
    assert lines(done) == [{"y": value} for value in rows]


@pytest.mark.parametrize(
    ("arguments", "given", "code", "text"),
    [
        (["gaps"], b'{"z": 1}', 2, "row 1 must have the model's inputs ['x'], got ['z']"),
        (["gaps"], b"[1, 'a']", 2, "standard input: it is not valid JSON"),
        (["gaps"], b"x\n1\nno\n", 2, "line 3, column 'x': 'no' is no FP32"),
        (["gaps", "--output", "nope"], b"[1]", 2, "no output 'nope'"),
        (["gap"], b"[1]", 1, "NotServed: the endpoint answered 404: there is no model 'gap'"),
        (["gaps", "--key", "wrong"], b"[1]", 1, "KeyRefused"),
        (["gaps", "--url", "http://127.0.0.1:9"], b"[1]", 1, "EndpointUnreachable"),
    ],
)
def test_the_command_says_what_was_wrong(
    served: Served, tmp_path: Path, arguments: list[str], given: bytes, code: int, text: str
) -> None:
    done = predict(served, tmp_path, *arguments, "--input", "-", given=given)
    assert (done.returncode, done.stdout) == (code, b""), done.stderr
    assert text in done.stderr.decode() and "Traceback" not in done.stderr.decode()


def test_without_an_endpoint_the_command_says_what_to_do(served: Served, tmp_path: Path) -> None:
    done = predict(served, tmp_path, "gaps", "--input", "-", given=b"[1]", WINNOW_ENDPOINT="")
    assert done.returncode == 1 and b"--url" in done.stderr
