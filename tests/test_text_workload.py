"""Texts as a workload: what is read, how it is divided, cut and refused."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from encoder_folders import LAYERS, encoder_folder
from torch import nn

from tasks.readers.splitting import Divided
from tasks.running.errors import DataReadError, SpecError, WinnowError
from tasks.running.stage import WorkloadRef
from tasks.workloads.docstrings import Docstrings
from tasks.workloads.offered_scales import offered_scales
from tasks.workloads.text import Text
from tasks.workloads.workload import Workload

THINGS = {"food": ("bread", "soup", "salt"), "films": ("scene", "actor", "plot")}


def rows(count: int = 80) -> list[tuple[str, str]]:
    """Texts of one word of their class among others, all of them different."""
    draw = np.random.default_rng(0)
    found = []
    for number in range(count):
        label = list(THINGS)[number % 2]
        words = [f"w{n}" for n in draw.integers(0, 40, 5)]
        found.append((" ".join([*words, str(draw.choice(THINGS[label])), f"n{number}"]), label))
    return found


def table(folder: Path, found: Sequence[Sequence[Any]], names: Sequence[str] = ("text", "target")) -> str:
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *found])
    return str(folder / "rows.csv")


def test_texts_become_tokens_and_a_tokenizer_that_reads_them_alike(tmp_path: Path) -> None:
    source = table(tmp_path, rows())
    one, two = Text(source, tokens=16), Text(source, tokens=16)
    splits = one.splits()
    assert {name: columns["tokens"].shape[1] for name, columns in splits.items()} == dict.fromkeys(splits, 16)
    assert sum(len(columns["target"]) for columns in splits.values()) == 80
    assert one.labels() == ["films", "food"]
    assert one.tokenizer() == two.tokenizer(), "trained again on the same texts it is the same"
    assert isinstance(splits, Divided)
    number = int(splits.source_rows["test"][0])
    assert one._tokenizer.encode(rows()[number][0]).ids == splits["test"]["tokens"][0].tolist()


def test_whatever_is_in_a_text_it_is_one_row(tmp_path: Path) -> None:
    odd = ["", 'two\nlines, "quoted"', "x" * 100_000, "Ελληνικά 中文 عربى", "👩‍👩‍👧 é", " \t ", "a\u0000b", "12345"]
    source = table(tmp_path, [*rows(), *((text, "food") for text in odd)])
    splits = Text(source, tokens=8).splits()
    tokens = np.concatenate([columns["tokens"] for columns in splits.values()])
    assert tokens.shape[1] == 8 and (tokens != 0).sum(1).min() >= 2, "a text of nothing has its beginning and its end"
    assert len(tokens) >= 80 + len(odd) - 1


@pytest.mark.parametrize("extension", ["parquet", "jsonl"])
def test_other_files_give_the_same(tmp_path: Path, extension: str) -> None:
    columns = {"text": [text for text, _ in rows()], "target": [label for _, label in rows()]}
    other = tmp_path / f"rows.{extension}"
    if extension == "parquet":
        pq.write_table(pa.table(columns), other)
    else:
        lines = (json.dumps({"text": text, "target": label}) for text, label in rows())
        other.write_text("\n".join(lines))
    ours, theirs = (Text(source, tokens=16).splits() for source in (table(tmp_path, rows()), str(other)))
    for name, split in ours.items():
        assert np.array_equal(split["tokens"], theirs[name]["tokens"]), name


def test_pairs_are_read_together(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path / "encoder")
    words = ("good", "bad", "film", "food", "very", "not", "the", "was")
    found = [(f"{a} {b} {c}", f"{c} {a}", n % 3) for n, (a, b, c) in enumerate(permutations(words, 3))]
    workload = Text(
        table(tmp_path, found, ("first", "second", "label")),
        text="first",
        pair="second",
        target="label",
        encoder=str(folder),
        tokens=16,
    )
    tokens = workload.splits()["train"]["tokens"]
    assert workload.labels() == ["0", "1", "2"] and workload.texts == 2
    assert ((tokens == 3).sum(1) == 2).all(), "each of the two texts ends"
    with torch.no_grad():
        answers = workload.model("teacher").eval()(torch.from_numpy(tokens[:2]))
    assert answers.shape == (2, 3)


def test_texts_with_the_same_tokens_are_in_one_split_only(tmp_path: Path) -> None:
    same = [(" ".join(f"w{n}" for n in range(20)) + f" end{number}", "food") for number in range(30)]
    workload = Text(table(tmp_path, [*rows(), *same]), tokens=8)
    splits = workload.splits()
    shared = next(row for row in splits["test"]["tokens"] if (splits["test"]["tokens"] == row).all(1).sum() > 1)
    where = [name for name, columns in splits.items() if (columns["tokens"] == shared).all(1).any()]
    assert isinstance(splits, Divided)
    (finding,) = splits.reading.findings
    assert "rows were left out: cut at 8 tokens" in finding
    assert where == ["test"]


def test_equal_texts_of_files_per_split_are_left_to_the_checks(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    source = {"train": table(tmp_path / "a", rows()), "test": table(tmp_path / "b", rows(10))}
    splits = Text(source, tokens=16).splits()
    assert len(splits["test"]["target"]) == 10
    assert sum(len(columns["target"]) for columns in splits.values()) == 90


def test_what_a_search_may_try_besides(tmp_path: Path) -> None:
    workload = Text(table(tmp_path, rows()), tokens=16)
    ref = WorkloadRef(path="winnow:Text", arguments={}, folder=None)
    offered = offered_scales(Workload(workload, ref))
    assert [scale for scale in offered if "width" not in scale] == [
        {"network": "bag"},
        {"layers": "half"},
        {"layers": "third"},
    ]
    assert [scale["width"] for scale in offered if "width" in scale] == [0.5] * 3
    bag, encoder = workload.model("student", network="bag"), workload.model("student")
    half = workload.model("student", layers="half")
    tokens = torch.from_numpy(workload.splits()["train"]["tokens"][:3])
    for model in (bag, encoder, half):
        model.eval()
        longer = nn.functional.pad(tokens, (0, 16))
        assert torch.allclose(model(tokens), model(longer), atol=1e-6)
    bag.train()
    assert not torch.equal(bag(tokens), bag(tokens)), "words are dropped in training"


def test_a_pretrained_encoder_is_kept_as_it_is(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path / "encoder")
    workload = Text(table(tmp_path, rows()), encoder=str(folder), tokens=16)
    whole, half = workload.model("teacher"), workload.model("student", layers="half")
    assert len(whole.get_submodule("layers")._modules) == LAYERS
    theirs, ours = whole.state_dict(), half.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items() if not name.startswith("head"))
    narrow = workload.model("student", width=0.5).state_dict()
    assert narrow["words.weight"].shape == (14, 4), "its weights are new"
    for layers, wanted in ((1, ["0"]), ([1], ["1"])):
        some = workload.model("student", layers=layers)
        assert list(some.get_submodule("layers")._modules) == wanted
    with pytest.raises(SpecError, match=f"layers {LAYERS + 1} must be from 1 to {LAYERS}"):
        workload.model("student", layers=LAYERS + 1)
    with pytest.raises(SpecError, match="layers 'few' must be one of all, half, third"):
        workload.model("student", layers="few")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="network 'cnn' must be one of encoder, bag"):
        workload.model("student", network="cnn")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"vocabulary": 100}, "vocabulary 100 must be from 300 to 262144"),
        ({"tokens": 3}, "tokens 3 must be from 4 to 512"),
        ({"unlabelled": "guess"}, "unlabelled 'guess' must be one of refuse, drop"),
        ({"text": "words"}, r"have no column 'words'; they have \['target', 'text'\]"),
        ({"target": "kind"}, "have no column 'kind'"),
        ({"source": {"test": "a.csv", "exam": "b.csv"}}, r"source names the splits \['exam'\]"),
        ({"source": "nowhere.csv"}, "nowhere.csv"),
        ({"encoder": "nowhere"}, "nowhere"),
        ({"encoder": "encoder", "tokens": 64}, "tokens 64 is more than the 40 places that encoder has"),
    ],
)
def test_what_cannot_be_read_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], text: str
) -> None:
    encoder_folder(tmp_path / "encoder")
    monkeypatch.chdir(tmp_path)
    settings: dict[str, Any] = {"source": table(tmp_path, rows()), "tokens": 16} | change
    with pytest.raises(WinnowError, match=text):
        Text(**settings).splits()


def test_labels_must_be_there_and_be_classes(tmp_path: Path) -> None:
    with pytest.raises(DataReadError, match=r"1 row .0. of 81 have no 'target'"):
        Text(table(tmp_path, [("a text", ""), *rows()])).splits()
    dropped = Text(table(tmp_path, [("a text", ""), *rows()]), unlabelled="drop").splits()
    assert sum(len(columns["target"]) for columns in dropped.values()) == 80
    with pytest.raises(DataReadError, match=r"'target' of .* holds float64; a class is text or a whole number"):
        Text(table(tmp_path, [(text, n / 3) for n, (text, _) in enumerate(rows())])).splits()
    with pytest.raises(DataReadError, match="train has only the value 'food'"):
        Text(table(tmp_path, [(text, "food") for text, _ in rows()])).splits()


def test_without_the_library_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(SpecError, match=r"pip install 'winnow-mlops\[text\]'"):
        Text(table(tmp_path, rows())).splits()


def test_docstrings_are_those_of_the_packages() -> None:
    workload = Docstrings(packages=["json", "email"], rows=40, tokens=16, vocabulary=300)
    splits = workload.splits()
    assert workload.labels() == ["email", "json"]
    assert all(len(columns["target"]) for columns in splits.values())
    assert not any("json" in text.lower().split() for (text,) in workload._read.texts["train"])
    with pytest.raises(DataReadError, match="package 'nowhere' is not installed"):
        Docstrings(packages=["nowhere"]).splits()


def test_lists_of_labels_are_another_workload_s(tmp_path: Path) -> None:
    lines = [
        json.dumps({"text": text, "target": [label], "other": list(range(n % 3))})
        for n, (text, label) in enumerate(rows())
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataReadError, match=r"'target' of .* holds lists; .* the workload is winnow:TextLabels"):
        Text(str(tmp_path / "rows.jsonl")).splits()
