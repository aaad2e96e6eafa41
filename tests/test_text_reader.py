"""Texts at the engine and at the endpoint: the tokenizer travels with the variant, and ids are still taken."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from endpoint_process import Endpoint, endpoint
from onnx_models import publish
from text_variants import reading, tagging

from model_registry.store import Store
from model_registry.text_input import TEXT_INPUT, TOKENIZER
from model_registry.variant import Variant
from serving.engine import Engine
from serving.engines.batch_certificate import certify
from serving.exceptions import EngineLoadError
from serving.loaded_model import LoadedModel
from serving.tensors import bytes_array

FILM = [2, 12, 6, 13, 4, 3]  # the film was good


def engine(folder: Path, **more: Any) -> Engine:
    return Engine(folder, reading(folder, **more))


def seen(made: Engine, *texts: str | bytes) -> list[list[float]]:
    given = bytes_array([text if isinstance(text, bytes) else text.encode() for text in texts], (len(texts),))
    found: list[list[float]] = made.run({"text": given})["seen"].tolist()
    return found


def test_texts_and_ids_are_answered_alike(tmp_path: Path) -> None:
    made = engine(tmp_path)
    assert [spec.name for spec in made.served] == ["text"] and [spec.name for spec in made.inputs] == ["tokens"]
    ids = np.array([FILM], np.int64)
    assert seen(made, "The film was GOOD") == made.run({"tokens": ids})["seen"].tolist() == [[6, sum(FILM)]]


def test_lengths_come_in_steps_and_end_at_the_longest(tmp_path: Path) -> None:
    made = engine(tmp_path)

    def length(*texts: str) -> int:
        array = bytes_array([text.encode() for text in texts], (len(texts),))
        return int(made.tokenized({"text": array})["tokens"].shape[1])

    assert [length("good"), length("good " * 14), length("good " * 15), length("good " * 1000)] == [16, 16, 32, 32]
    assert length("good", "good " * 20) == 32


@pytest.mark.parametrize("text", ["", " ", "\x00", "👩‍👩‍👧 é", "中文", b"\xff\xfe no UTF-8", "film " * 100_000])
def test_any_text_is_answered(tmp_path: Path, text: str | bytes) -> None:
    ((count, _),) = seen(engine(tmp_path), text)
    assert 2 <= count <= 32


def test_pairs(tmp_path: Path) -> None:
    made = engine(tmp_path, texts=2)
    assert made.served[0].shape == (-1, 2)
    given = bytes_array([b"the film", b"was good", b"bad", b"food"], (2, 2))
    assert made.run({"text": given})["seen"].tolist() == [[7, 2 + 12 + 6 + 3 + 13 + 4 + 3], [5, 2 + 5 + 3 + 7 + 3]]


def test_requests_of_texts_may_share_a_batch(tmp_path: Path) -> None:
    found = certify(engine(tmp_path), (tmp_path / "model.onnx").read_bytes())
    assert found.joins, found.why


def test_a_loaded_model_takes_text(tmp_path: Path) -> None:
    model = LoadedModel(engine(tmp_path), "films")
    assert [spec.name for spec in model.inputs] == ["text"]
    assert model.predict("the film was good")["seen"].tolist() == [6, sum(FILM)]
    assert model.predict_batch(["good", "bad"])["seen"][:, 0].tolist() == [3, 3]


def without(folder: Path, name: str) -> Variant:
    variant = reading(folder)
    files = [file for file in variant.files if file.path != name]
    return Variant.model_validate(variant.model_dump() | {"digest": "", "files": files})


def test_what_cannot_read_text_is_refused_when_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineLoadError, match=f"has {TEXT_INPUT} but no {TOKENIZER}"):
        Engine(tmp_path / "a", without(tmp_path / "a", TOKENIZER))
    with pytest.raises(EngineLoadError, match="cannot be read: no tokenizer"):
        engine(tmp_path / "b", **{TOKENIZER: "{}"})
    with pytest.raises(EngineLoadError, match="cannot be read"):
        engine(tmp_path / "c", **{TEXT_INPUT: "[]"})
    with pytest.raises(EngineLoadError, match=r"reads text into 'ids', INT64 .* its inputs are \[\('tokens'"):
        engine(tmp_path / "d", **{TEXT_INPUT: json.dumps({"input": "ids", "texts": 1})})
    variant = reading(tmp_path / "e")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(EngineLoadError, match=r"pip install 'winnow-mlops\[text\]'"):
        Engine(tmp_path / "e", variant)


@pytest.fixture
def running(store: Store, tmp_path: Path) -> Iterator[Endpoint]:
    variant = publish(store, tmp_path / "v", reading(tmp_path / "v"))
    with endpoint(tmp_path / "home") as process:
        process.deploy("films", "1", variant.digest)
        yield process


def test_the_endpoint_takes_texts_in_every_form(running: Endpoint) -> None:
    told = running.get("/v2/models/films").json()
    assert told["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    text = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["The film was good", "👩‍👩‍👧"]}
    answered = running.infer("films", {"inputs": [text]}).json()["outputs"][0]["data"]
    assert answered[:2] == [6, sum(FILM)]

    raw = b"".join(len(part).to_bytes(4, "little") + part for part in (b"The film was good",))
    head = json.dumps(
        {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}]}
    ).encode()
    binary = running.client.post(
        f"{running.url}/v2/models/films/infer",
        content=head + raw,
        headers={"inference-header-content-length": str(len(head))},
    )
    assert binary.json()["outputs"][0]["data"] == [6, sum(FILM)]

    tokens = {"name": "tokens", "shape": [1, 6], "datatype": "INT64", "data": FILM}
    assert running.infer("films", {"inputs": [tokens]}).json()["outputs"][0]["data"] == [6, sum(FILM)]
    for wrong, why in (
        ({"name": "words", "shape": [1], "datatype": "BYTES", "data": ["a"]}, "the model has no input 'words'"),
        ({"name": "text", "shape": [1], "datatype": "BYTES", "data": [1]}, "text"),
        ({"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]}, "shape"),
    ):
        refused = running.infer("films", {"inputs": [wrong]})
        assert refused.status_code == 400 and why in refused.json()["error"]


def test_the_endpoint_answers_word_by_word(store: Store, tmp_path: Path) -> None:
    variant = publish(store, tmp_path / "v", tagging(tmp_path / "v"))
    texts = ["the good  films", "Bad films, not good"]
    wanted = [["late", "early", "early"], ["early", "early", "late", "early"]]
    with endpoint(tmp_path / "home") as process:
        process.deploy("tags", "1", variant.digest)

        def ask(number: int) -> list[str]:
            text = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [texts[number % 2]]}
            (label,) = process.infer("tags", {"inputs": [text], "outputs": [{"name": "label"}]}).json()["outputs"]
            assert label["shape"] == [1, 16]
            words: list[str] = [word for word in label["data"] if word]
            return words

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ask, range(60))) == wanted * 30


def test_many_clients_are_answered_as_one(running: Endpoint) -> None:
    def ask(count: int) -> list[float]:
        body = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["good " * count]}]}
        data: list[float] = running.infer("films", body).json()["outputs"][0]["data"]
        return data

    counts = [1 + n % 29 for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, counts)) == [[count + 2, 2 + 4 * count + 3] for count in counts]
