"""Sentence vectors as a workload: what the teacher is, which texts match, and how vectors are judged."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_folders import FEATURES, LAYERS, encoder_folder
from numpy.typing import NDArray

from tasks.prune.channel_cut import Cut
from tasks.readers.matched_texts import _ALIKE, _ASKS_NOTHING
from tasks.readers.splitting import Divided
from tasks.running.errors import DataReadError, WinnowError
from tasks.running.stage import WorkloadRef
from tasks.torch_models.channel_pruner import ChannelPruner
from tasks.workloads.offered_scales import offered_scales
from tasks.workloads.pooling_files import read_pooling
from tasks.workloads.sentence_vectors import SentenceVectors
from tasks.workloads.task_check import settle_task
from tasks.workloads.vector_scores import RETRIEVAL, with_matches
from tasks.workloads.workload import Workload, rows_that_count

WORDS = ("good", "bad", "film", "food", "very", "not", "the", "was")


def sentence(draw: np.random.Generator) -> str:
    return " ".join(draw.choice(WORDS, 7))


def write(folder: Path, rows: Sequence[Sequence[str]], names: Sequence[str] = ("text",)) -> str:
    with (folder / "texts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *rows])
    return str(folder / "texts.csv")


def pairs(folder: Path, count: int = 60) -> str:
    """Two queries for each text."""
    draw = np.random.default_rng(1)
    texts = [sentence(draw) for _ in range(count)]
    return write(folder, [(sentence(draw), text) for text in texts for _ in range(2)], ("question", "text"))


def pooled(folder: Path, **config: Any) -> Path:
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in
               (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    return folder


def test_the_targets_are_the_teachers_vectors_of_length_one(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    source = write(tmp_path, [(sentence(draw),) for _ in range(80)] * 2)
    workload = SentenceVectors(source, str(encoder_folder(tmp_path / "encoder")), tokens=16)
    splits = workload.splits()
    assert isinstance(splits, Divided)
    assert sum(len(columns["target"]) for columns in splits.values()) == 80, "each text is there once"
    tokens, target = splits["test"]["tokens"], splits["test"]["target"]
    with torch.no_grad():
        answers = workload.model("teacher").eval()(torch.from_numpy(tokens)).numpy()
    assert target.shape == (len(tokens), FEATURES) and np.abs(answers - target).max() < 1e-5
    assert np.allclose(np.linalg.norm(target, axis=1), 1)
    settled = settle_task(Workload(workload, WorkloadRef(path="x:Y")), (-1, FEATURES), {"train": target})
    assert (settled.kind, settled.metric.name, settled.metric.builtin) == ("regression", "cosine", True)
    assert workload.loss(torch.from_numpy(answers), torch.from_numpy(target)).item() < 1e-6


def test_students_begin_with_the_teachers_layers_and_answer_as_many_numbers(tmp_path: Path) -> None:
    source = write(tmp_path, [(sentence(np.random.default_rng(n)),) for n in range(40)])
    workload = SentenceVectors(source, str(encoder_folder(tmp_path / "encoder")), tokens=16)
    teacher, half = workload.model("teacher"), workload.model("student", layers="half")
    theirs = teacher.state_dict()
    assert len([n for n in theirs if n.endswith("down.weight")]) == LAYERS
    assert all(torch.equal(value, theirs[name]) for name, value in half.state_dict().items())
    tokens = torch.tensor([[2, 12, 6, 3], [2, 4, 3, 0]])
    for scale in offered_scales(Workload(workload, WorkloadRef(path="winnow:SentenceVectors"))):
        answers = workload.model("student", **scale).eval()(tokens)
        assert answers.shape == (2, FEATURES) and torch.allclose(answers.norm(dim=1), torch.ones(2)), scale


def test_the_teacher_can_be_narrowed_without_its_answer(tmp_path: Path) -> None:
    source = write(tmp_path, [(sentence(np.random.default_rng(n)),) for n in range(40)])
    workload = SentenceVectors(source, str(encoder_folder(tmp_path / "encoder")), tokens=16)
    cut = Cut(ratio=0.5, steps=1)
    model = workload.model("teacher")
    pruner = ChannelPruner(model, {"tokens": torch.tensor([[2, 12, 6, 3], [2, 4, 3, 0]])}, ratio=cut.ratio)
    pruner.step()
    assert model(torch.tensor([[2, 12, 3]])).shape == (1, FEATURES)
    assert model.get_submodule("network.layers.0.up").out_features == 6


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "first"),
        ({"pooling_mode": "max"}, "max"),
    ],
)
def test_the_folder_says_how_vectors_become_one(tmp_path: Path, config: dict[str, Any], found: str) -> None:
    folder = pooled(encoder_folder(tmp_path / "encoder"), **config)
    assert read_pooling(folder) == found
    source = write(tmp_path, [(sentence(np.random.default_rng(n)),) for n in range(40)])
    model = SentenceVectors(source, str(folder), tokens=16).model("teacher").eval()
    short = torch.tensor([[2, 12, 6, 3]])
    with torch.no_grad():
        assert torch.allclose(model(short), model(torch.nn.functional.pad(short, (0, 12))), atol=1e-6)


def test_other_parts_of_a_sentence_model_are_refused(tmp_path: Path) -> None:
    folder = pooled(encoder_folder(tmp_path / "encoder"), pooling_mode_weightedmean_tokens=True)
    with pytest.raises(DataReadError, match="pools by weightedmean_tokens; what can be read is one of mean, cls and"):
        read_pooling(folder)
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(DataReadError, match=r"config.json is missing, which modules.json names"):
        read_pooling(folder)
    for kind, path, text in (("Dense", "", "has a part 'Dense'"), ("Transformer", "0_T", "has the encoder in '0_T'")):
        (folder / "modules.json").write_text(json.dumps([{"type": f"a.{kind}", "path": path}]))
        with pytest.raises(DataReadError, match=text):
            read_pooling(folder)
    (folder / "modules.json").write_text("{}")
    with pytest.raises(DataReadError, match="is not what sentence-transformers writes"):
        read_pooling(folder)


def test_queries_are_rows_too_and_stay_with_their_texts(tmp_path: Path) -> None:
    source = pairs(tmp_path)
    workload = SentenceVectors(source, str(encoder_folder(tmp_path / "encoder")), query="question", tokens=16)
    splits = workload.splits()
    assert sum(len(columns["target"]) for columns in splits.values()) == 180
    for columns in splits.values():
        matches: NDArray[Any] = columns["target"][:, -1]
        assert set(-matches[matches < 0]) == set(matches[matches > 0]), "each query has its text"
        assert (matches < 0).sum() == 2 * (matches > 0).sum()
    target: NDArray[Any] = splits["test"]["target"]
    settled = settle_task(Workload(workload, WorkloadRef(path="x:Y")), (-1, FEATURES), {"train": target})
    assert (settled.kind, settled.metric.name) == ("other", "mrr")
    kind = Workload(workload, WorkloadRef(path="x:Y"))
    scores = kind.scores(target[:, :-1], target)
    assert len(scores) == (target[:, -1] < 0).sum() and rows_that_count(kind, target).tolist() == [
        *np.flatnonzero(target[:, -1] < 0)
    ]


def test_what_pairs_connect_is_one_group(tmp_path: Path) -> None:
    rows = [("good", "bad"), ("good", "film"), ("very", "film"), ("food", "not")]
    rows += [(sentence(np.random.default_rng(n)), sentence(np.random.default_rng(n + 99))) for n in range(40)]
    source = write(tmp_path, rows, ("question", "text"))
    workload = SentenceVectors(source, str(encoder_folder(tmp_path / "encoder")), query="question", tokens=16)
    where = {text: (split, abs(int(match)))
             for split, texts in workload._read.texts.items()
             for (text,), match in zip(texts, workload._read.matches[split], strict=True)}  # fmt: skip
    assert len({where[name] for name in ("good", "very", "bad", "film")}) == 1
    assert where["food"] == where["not"] != where["bad"]


def test_texts_that_the_encoder_reads_alike_are_one(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    texts = sorted({sentence(draw) for _ in range(60)})
    rows = [(text,) for text in texts] + [(text.upper(),) for text in texts[:5]]
    workload = SentenceVectors(write(tmp_path, rows), str(encoder_folder(tmp_path / "encoder")), tokens=16)
    splits = workload.splits()
    assert isinstance(splits, Divided) and sum(len(rows) for rows in splits.source_rows.values()) == len(texts)
    assert splits.reading.findings == (f"5 {_ALIKE}",)
    asked = [(sentence(draw), text) for text in texts] + [(texts[0].upper(), texts[0])]
    source = write(tmp_path, asked, ("question", "text"))
    splits = SentenceVectors(source, str(tmp_path / "encoder"), query="question", tokens=16).splits()
    whole = np.concatenate([columns["tokens"] for columns in splits.values()])
    assert len(np.unique(whole, axis=0)) == len(whole) == 2 * len(texts)
    assert isinstance(splits, Divided) and splits.reading.findings == (f"1 {_ASKS_NOTHING}",)


def test_a_query_finds_its_text_among_all_texts_of_the_split() -> None:
    east, north = [1.0, 0.0], [0.0, 1.0]
    vectors = np.array([east, north, [1, 0.1], [0.9, 1.0], north], np.float32)
    targets = with_matches(vectors, np.array([1, 2, -1, -1, -3]))
    assert RETRIEVAL["recall@1"](vectors, targets).tolist() == [0, 0, 1, 0, 0], "of the last query no text is here"
    assert RETRIEVAL["mrr"](vectors, targets).tolist() == [0, 0, 1, 0.5, 0]
    assert RETRIEVAL["recall@10"](vectors, targets).tolist() == [0, 0, 1, 1, 0]
    alike = np.ones_like(vectors)
    assert RETRIEVAL["mrr"](alike, targets).tolist() == [0, 0, 0.5, 0.5, 0], "one answer to everything finds nothing"
    broken = vectors.copy()
    broken[1] = np.nan
    assert np.isnan(RETRIEVAL["mrr"](broken, targets)[[2, 3]]).all()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"metric": "mrr"}, "metric 'mrr' needs queries; name their column by `query`"),
        ({"metric": "ndcg", "query": "text"}, "metric 'ndcg' must be one of cosine, recall@1, recall@10, mrr"),
        ({"query": "question"}, r"have no column 'question'; they have \['text'\]; name one of them by `text` or `que"),
        ({"encoder": "nowhere"}, "nowhere"),
        ({"source": "empty.csv"}, r"1 of 3 rows \(the first is row 1\) have nothing in 'text'; fill it in"),
    ],
)
def test_what_cannot_be_read_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], text: str
) -> None:
    encoder_folder(tmp_path / "encoder")
    (tmp_path / "empty.csv").write_text('text\na\n" "\nb\n')
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path, [(sentence(np.random.default_rng(n)),) for n in range(40)])
    settings: dict[str, Any] = {"source": source, "encoder": "encoder", "tokens": 16} | change
    with pytest.raises(WinnowError, match=text):
        SentenceVectors(**settings).splits()
