"""A tag for each word: what is read and refused, what counts, and what a client is answered."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from encoder_folders import encoder_folder

from model_registry.answer_labels import ONE_PER_WORD
from model_registry.manifest import describe_folder
from model_registry.text_input import TEXT_INPUT, TOKENIZER, TextInput, first_pieces
from model_registry.variant import TensorSpec, Variant
from serving.engine import MODEL, Engine
from serving.exceptions import EngineLoadError
from serving.loaded_model import LoadedModel
from serving.tensors import bytes_array
from serving.text_reader import WORDS, TextReader
from tasks.export.onnx_export import export_onnx
from tasks.export.raw_inputs import RawInputs
from tasks.onnx_models.onnx_graph import signature
from tasks.readers.splitting import Divided
from tasks.running.errors import DataReadError, WinnowError
from tasks.running.stage import WorkloadRef
from tasks.workloads.sample_scores import pixel_accuracy_scores
from tasks.workloads.span_scores import span_f1_scores, spans_of
from tasks.workloads.task_check import settle_task
from tasks.workloads.text_encoder import TextEncoder
from tasks.workloads.text_tags import TextTags
from tasks.workloads.workload import Workload

NAMES = {"Anna": "B-PER", "Bo": "I-PER", "Rome": "B-LOC"}


def rows(count: int = 90) -> tuple[list[list[str]], list[list[str]]]:
    draw = np.random.default_rng(0)
    words = [[*draw.choice([*NAMES, "went", "sitting,", "to"], 5).tolist(), f"n{n}"] for n in range(count)]
    return words, [[NAMES.get(word, "O") for word in text] for text in words]


def lines(folder: Path, words: list[Any], tags: list[Any]) -> str:
    pairs = zip(words, tags, strict=True)
    text = "\n".join(
        json.dumps({"tokens": ours, "tags": theirs, "id": [1] * n}) for n, (ours, theirs) in enumerate(pairs)
    )
    (folder / "rows.jsonl").write_text(text)
    return str(folder / "rows.jsonl")


@pytest.mark.parametrize("brought", [False, True])
def test_the_first_token_of_a_word_has_its_tag(tmp_path: Path, brought: bool) -> None:
    words, tags = rows()
    encoder = str(encoder_folder(tmp_path / "encoder")) if brought else None
    user = TextTags(lines(tmp_path, words, tags), encoder=encoder, tokens=16, vocabulary=300)
    splits = user.splits()
    assert isinstance(splits, Divided)
    assert user.labels() == ["B-LOC", "B-PER", "I-PER", "O"]
    for name, columns in splits.items():
        for tokens, target, row in zip(columns["tokens"], columns["target"], splits.source_rows[name], strict=True):
            known = [user.labels()[n] for n in target if n >= 0]
            assert known == tags[row][: len(known)]
            assert len(known) == len(words[row]) or (tokens != 0).all(), "or cut"
    assert (splits["train"]["target"][:, 0] == -1).all(), "no word begins with the token that begins a text"


def test_tags_of_other_splits_only_do_not_count(tmp_path: Path) -> None:
    words, tags = rows()
    for name, first in (("train", "O"), ("test", "B-NEW")):
        (tmp_path / name).mkdir()
        lines(tmp_path / name, [[name, *some] for some in words], [[first, *some] for some in tags])
    source = {name: str(tmp_path / name / "rows.jsonl") for name in ("train", "test")}
    splits = TextTags(source, tokens=24, vocabulary=300).splits()
    assert isinstance(splits, Divided) and splits["test"]["target"].max() >= 0
    (finding,) = splits.reading.findings
    assert finding == "90 words have tags that train has not, and do not count: 'B-NEW' 90"


def test_parquet_gives_the_same_and_spaces_of_byte_tokens_are_no_words(tmp_path: Path) -> None:
    words, tags = rows()
    pq.write_table(pa.table({"tokens": words, "tags": tags}), tmp_path / "rows.parquet")
    ours, theirs = (
        TextTags(source, tokens=16, vocabulary=300).splits()
        for source in (lines(tmp_path, words, tags), str(tmp_path / "rows.parquet"))
    )
    assert all(np.array_equal(columns["target"], theirs[name]["target"]) for name, columns in ours.items())
    assert first_pieces("a  bc d", [(0, 0), (0, 1), (1, 3), (3, 4), (4, 5), (5, 7)]) == [-1, 0, -1, 1, -1, 2]
    assert first_pieces("ab", [(0, 1), (1, 2), (0, 0)]) == [0, -1, -1]


def test_what_only_fills_up_counts_for_nothing(tmp_path: Path) -> None:
    words, tags = rows()
    user = TextTags(lines(tmp_path, words, tags), tokens=16, vocabulary=300)
    splits = user.splits()
    workload = Workload(user, WorkloadRef(path="x:Y"))
    settled = settle_task(workload, (-1, 4, 16), {name: columns["target"] for name, columns in splits.items()})
    assert (settled.kind, settled.metric.name) == ("places", "span_f1")
    tokens, target = (torch.from_numpy(splits["test"][name][:4]) for name in ("tokens", "target"))
    tokens[:, 10:], target[:, 10:] = 0, -1
    model = user.model("teacher").eval()
    with torch.no_grad():
        answers, shorter = model(tokens), model(tokens[:, :10])
    assert answers.shape == (4, 4, 16) and not answers[:, :, 10:].any()
    assert torch.allclose(answers[:, :, :10], shorter, atol=1e-6)
    assert torch.isclose(workload.loss(answers, target), workload.loss(shorter, target[:, :10]))
    scores = [workload.scores(a.numpy(), t.numpy()) for a, t in ((answers, target), (shorter, target[:, :10]))]
    assert np.array_equal(scores[0], scores[1])


def test_spans_are_read_as_seqeval_reads_them() -> None:
    assert spans_of(["B-PER", "I-PER", "O", "B-LOC", "B-LOC"]) == {("PER", 0, 2), ("LOC", 3, 4), ("LOC", 4, 5)}
    assert spans_of(["I-PER", "I-LOC", "O", "I-LOC"]) == {("PER", 0, 1), ("LOC", 1, 2), ("LOC", 3, 4)}
    assert spans_of([]) == spans_of(["O", "O"]) == set()


def test_no_text_has_no_scores() -> None:
    assert pixel_accuracy_scores(np.zeros((0, 3, 5)), np.zeros((0, 5), int)).tolist() == []


def test_span_f1_counts_whole_spans() -> None:
    labels = ["O", "B-PER", "I-PER"]
    targets = np.array([[-1, 1, -1, 2, 0], [1, 0, 1, -1, -1], [0, 0, -1, -1, -1], [0, 0, -1, -1, -1]])
    said = np.array([[2, 1, 0, 2, 0], [1, 0, 0, 1, 1], [0, 0, 1, 1, 1], [0, 1, 0, 0, 0]])
    outputs = np.moveaxis(np.eye(3)[said], 2, 1)
    assert span_f1_scores(outputs, targets, labels=labels).tolist() == pytest.approx([1, 2 / 3, 1, 0])
    outputs[0, :, 1] = np.nan
    assert span_f1_scores(outputs, targets, labels=labels)[0] < 1


@pytest.mark.parametrize(
    ("row", "change", "text"),
    [
        ((["a b"], ["O"]), {}, r"has 'a b' for a word in row 0; a word is not empty and has no space in it"),
        (([""], ["O"]), {}, "has '' for a word in row 0"),
        ((["a", "b"], ["O"]), {}, "row 0 of .* has 2 words in 'tokens' and 1 tags in 'tags'; each word needs a tag"),
        (([], []), {}, "row 0 of .* has no words in 'tokens'; leave it out"),
        (("a b", ["O"]), {}, "cannot be read as JSON lines"),
        ((["a"], None), {}, r"1 row .0. of 91 have no 'tags' to predict"),
        ((["a"], ["O"]), {"metric": "f1"}, "metric 'f1' must be one of span_f1, token_accuracy"),
        ((["a"], ["O"]), {"target": "ner"}, r"have no column 'ner'; they have \['id', 'tags', 'tokens'\]"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, row: Any, change: dict[str, Any], text: str) -> None:
    words, tags = rows()
    source = lines(tmp_path, [row[0], *words], [row[1], *tags])
    with pytest.raises(WinnowError, match=text):
        TextTags(source, tokens=16, vocabulary=300, **change).splits()


def test_tags_that_mark_no_spans_are_judged_one_by_one(tmp_path: Path) -> None:
    words, tags = rows()
    plain = [[tag.replace("-", "_") for tag in some] for some in tags]
    source = lines(tmp_path, words, plain)
    assert TextTags(source, tokens=16, vocabulary=300).metric().name == "token_accuracy"
    with pytest.raises(DataReadError, match="metric span_f1 needs tags that begin with B- and I-, or are O"):
        TextTags(source, metric="span_f1", tokens=16, vocabulary=300).metric()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TextTags, Variant]:
    """A folder with the untrained teacher as the export stage writes it."""
    folder = tmp_path_factory.mktemp("served")
    user = TextTags(lines(tmp_path_factory.mktemp("rows"), *rows()), tokens=32, vocabulary=300)
    small = TextEncoder(replace(user._shape, features=8, layers=1, heads=2, hidden=8), 4, pooling="each")
    module = RawInputs(small.eval(), lambda inputs: inputs, ("tokens",))
    data = export_onnx(
        module, {"tokens": torch.full((3, 16), 5)}, output="prediction", dynamic={"tokens": {1: "length"}}
    )
    inputs, outputs = signature(onnx.load_from_string(data))
    (folder / "assets").mkdir()
    (folder / MODEL).write_bytes(data)
    (folder / TOKENIZER).write_text(user.tokenizer())
    (folder / TEXT_INPUT).write_bytes(TextInput(input="tokens", words=True).to_json())
    (folder / ONE_PER_WORD).write_text(json.dumps(user.labels()))
    return folder, user, described(folder, inputs=inputs, outputs=outputs)


def described(folder: Path, **specs: tuple[TensorSpec, ...]) -> Variant:
    return Variant(name="tags", stage="export", format="onnx", files=describe_folder(folder), **specs)


def test_a_client_is_told_a_tag_for_each_word(served: tuple[Path, TextTags, Variant]) -> None:
    folder, user, variant = served
    engine = Engine(folder, variant)
    assert [(spec.name, spec.shape) for spec in engine.outputs][1:] == [("label", (-1, -1)), ("probability", (-1, -1))]
    texts = ["Anna went  to Rome ", "sitting, Bo"]
    given = {"text": bytes_array([text.encode() for text in texts], (2,))}
    found, ids = engine.run(given), engine.tokenized(given)
    assert engine.run(ids)["label"].tolist() == found["label"].tolist(), "as the endpoint's engines ask"
    for row, text in enumerate(texts):
        words, said = text.split(), found["label"][row].tolist()
        assert all(tag.decode() in user.labels() for tag in said[: len(words)])
        assert not any(said[len(words) :]) and not found["probability"][row, len(words) :].any()
        (alone,) = engine.run({"text": bytes_array([text.encode()], (1,))})["label"].tolist()
        assert alone[: len(words)] == said[: len(words)]
    first = {word: token for token, word in reversed([*enumerate(ids[WORDS][0].tolist())])}
    best = found["prediction"][0].argmax(axis=0)
    assert [user.labels()[best[first[word]]].encode() for word in range(4)] == found["label"][0].tolist()[:4]
    plain = engine.run({"tokens": ids["tokens"]})
    assert plain["label"].shape == ids["tokens"].shape and all(plain["label"].ravel().tolist()), "ids: each is a word"
    answer = LoadedModel(engine, "tags").predict(texts[0])
    assert answer["label"][:4].tolist() == [tag.decode() for tag in found["label"][0].tolist()[:4]]


def test_tags_and_answers_must_fit(served: tuple[Path, TextTags, Variant], tmp_path: Path) -> None:
    folder, user, variant = served
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / ONE_PER_WORD).write_text('["O", "B-PER"]')
    other = described(tmp_path / "other", inputs=variant.inputs, outputs=variant.outputs)
    with pytest.raises(
        EngineLoadError, match=r"has 2 labels, which need a first output FP32 \[-1, 2, -1\]; it is FP32"
    ):
        Engine(tmp_path / "other", other)
    pairs = TextInput(input="tokens", texts=2, words=True).to_json()
    with pytest.raises(ValueError, match="answers for each word are those of one text, not of pairs"):
        TextReader(user.tokenizer().encode(), pairs)
