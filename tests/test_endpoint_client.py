"""The endpoint's client against a real endpoint: what is loaded, what is served, and what errors say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from endpoint_process import TOKEN, endpoint
from onnx_models import answer, digits, filled, log, publish

from model_registry.endpoint_client import Endpoint, EndpointError, EndpointRefused, EndpointUnreachable
from model_registry.store import Store


@pytest.fixture
def client(store: Store, tmp_path: Path) -> Iterator[Endpoint]:
    with endpoint(tmp_path / "home") as process, Endpoint(process.url, process.admin_url, TOKEN) as made:
        yield made


def test_load_route_infer_unload(client: Endpoint, store: Store, tmp_path: Path) -> None:
    one, two = (publish(store, tmp_path / str(n), answer(tmp_path / str(n), n)) for n in (1, 2))
    assert client.models() == [] and client.model("m").serving is None
    client.load("m", 1, one.digest)
    client.load("m", 1, one.digest)  # again is harmless
    assert client.route("m", 1) is None
    client.load("m", 2, two.digest)
    held = client.model("m")
    assert (held.serving, [v.version for v in held.versions]) == (1, [1, 2])
    assert held.digest_of(2) == two.digest and held.digest_of(3) is None and held.digest_of(None) is None
    x = {"x": np.zeros((2, 2), np.float32)}
    assert client.infer("m", None, x, one.inputs)["y"].tolist() == [[1, 1], [1, 1]]
    assert client.infer("m", 2, x, one.inputs)["y"].tolist() == [[2, 2], [2, 2]]
    assert client.route("m", 2) == 1
    client.unload("m", 1)
    client.unload("m", 1)  # again is harmless
    with pytest.raises(EndpointRefused, match=r"409.*has the traffic"):
        client.unload("m", 2)
    assert client.route("m", None) == 2
    client.unload("m", 2)
    assert client.models() == []


def test_labels_and_numbers_that_are_none(client: Endpoint, store: Store, tmp_path: Path) -> None:
    classifier = publish(store, tmp_path / "d", digits(tmp_path / "d"))
    logarithm = publish(store, tmp_path / "l", log(tmp_path / "l"))
    client.load("digits", 1, classifier.digest)
    found = client.infer("digits", 1, {"image": np.ones((2, 1, 8, 8), np.float32)}, classifier.inputs)
    assert found["label"].shape == (2,) and found["label"][0] in {str(i) for i in range(10)}
    assert found["logits"].dtype == np.float32 and found["logits"].shape == (2, 10)
    client.load("log", 1, logarithm.digest)
    values = client.infer("log", 1, {"x": np.array([-1, 1], np.float32)}, logarithm.inputs)["y"]
    assert np.isnan(values[0]) and values[1] == 0.0


def test_missing_values_travel_to_a_model_that_was_trained_with_some(
    client: Endpoint, store: Store, tmp_path: Path
) -> None:
    rows = {"x": np.array([1, np.nan], np.float32)}
    gaps = publish(store, tmp_path / "gaps", filled(tmp_path / "gaps", missing=["x"]))
    client.load("gaps", 1, gaps.digest)
    assert client.infer("gaps", 1, rows, gaps.inputs)["y"].tolist() == [1, 7]
    whole = publish(store, tmp_path / "whole", filled(tmp_path / "whole"))
    client.load("whole", 1, whole.digest)
    with pytest.raises(EndpointRefused, match="got None: the model was not trained with missing values"):
        client.infer("whole", 1, rows, whole.inputs)


def test_refusals_carry_the_endpoints_words(client: Endpoint, store: Store, tmp_path: Path) -> None:
    with pytest.raises(EndpointRefused, match=r"422: version 1 of model 'm' .* cannot be served") as caught:
        client.load("m", 1, "0" * 64)
    assert not caught.value.may_pass
    one = publish(store, tmp_path / "1", answer(tmp_path / "1", 1))
    with pytest.raises(EndpointRefused) as caught:
        client.infer("m", 1, {"x": np.zeros((1, 2), np.float32)}, one.inputs)
    assert caught.value.status == 404
    with pytest.raises(EndpointRefused, match="409"):
        client.load("m", 1, one.digest)
        client.load("m", 1, "1" * 64)


def test_a_wrong_token_and_a_closed_port(client: Endpoint) -> None:
    with Endpoint(client.url, client._admin, "wrong") as stranger, pytest.raises(EndpointRefused, match="401"):
        stranger.models()
    nobody = Endpoint("http://127.0.0.1:9", "http://127.0.0.1:9", "t")
    with nobody, pytest.raises(EndpointUnreachable, match="winnow status"):
        nobody.models()
    assert issubclass(EndpointUnreachable, ConnectionError)


def test_the_environment_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WINNOW_ENDPOINT", "WINNOW_ENDPOINT_ADMIN", "WINNOW_ADMIN_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WINNOW_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(EndpointError, match=r"WINNOW_ENDPOINT_ADMIN, WINNOW_ADMIN_TOKEN not set; .*winnow up"):
        Endpoint.from_environment()
