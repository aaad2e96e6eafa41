"""Texts that are to be continued: how they are read and divided, and the workload that trains on them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from decoder_folders import decoder_folder
from test_decoder import gguf
from token_models import TEXT
from tokenizers import Tokenizer

from tasks.readers.documents import divide_documents, read_documents
from tasks.readers.sources import fingerprint, package_folder
from tasks.running.errors import DataReadError, SpecError
from tasks.running.splits import SPLITS, TARGET
from tasks.running.stage import WorkloadRef
from tasks.workloads import causal_lm
from tasks.workloads.block_influence import block_influence
from tasks.workloads.causal_decoder import CausalDecoder
from tasks.workloads.causal_lm import CausalLM
from tasks.workloads.standard_library import StandardLibrary
from tasks.workloads.task_check import settle_task
from tasks.workloads.text_tokenizer import new_causal_tokenizer
from tasks.workloads.workload import Workload, settled_scale


def texts(folder: Path, count: int = 40) -> Path:
    """Files of different texts, each longer than a row."""
    draw = np.random.default_rng(0)
    words = TEXT.split()
    folder.mkdir(exist_ok=True)
    for number in range(count):
        said = " ".join(str(word) for word in draw.choice(words, 80))
        (folder / f"{number:02}.txt").write_text(f"{number} {said}")
    return folder


def questions(path: Path, count: int) -> Path:
    """Questions of which anything is the answer."""
    words = sorted(set(TEXT.split()))
    lines = [
        {"question": f"{number} The {words[number % 7]}", "choices": [*words[:2], "dog 1"], "answer": number % 3}
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def workload(folder: Path, **arguments: object) -> CausalLM:
    given = {"tokens": 16, "vocabulary": 300, **arguments}
    return CausalLM(str(texts(folder / "texts")), **given)  # type: ignore[arg-type]


# -- reading ----------------------------------------------------------------------------------------------------------
def test_texts_come_from_folders_files_and_tables(tmp_path: Path) -> None:
    folder = texts(tmp_path / "many", 5)
    (folder / "empty.txt").write_text(" \n")
    (folder / "again.txt").write_text((folder / "00.txt").read_text())
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / "deeper").mkdir()
    (folder / "deeper" / "x.md").write_bytes(b"caf\xc3\xa9 \xff")
    found = read_documents(str(folder))
    assert len(found) == 6 and "caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{REPLACEMENT CHARACTER}" in found
    assert read_documents(str(folder / "00.txt")) == [(folder / "00.txt").read_text()]
    lines = "\n".join(json.dumps({"said": f"text {n}", "other": n}) for n in range(4)).encode()
    (tmp_path / "t.jsonl").write_bytes(lines)
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(lines))
    for name in ("t.jsonl", "t.jsonl.gz"):
        assert read_documents(str(tmp_path / name), column="said") == [f"text {n}" for n in range(4)]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda f: f / "nowhere", "there is no file or folder"),
        (lambda f: f, "holds no text"),
        (lambda f: (f / "t.jsonl").write_text('{"a": "x"}') and f / "t.jsonl", "has no column 'text'; it has"),
        (lambda f: (f / "t.bin").write_text("x") and f / "t.bin", "is neither a folder, nor a file"),
    ],
)
def test_sources_without_texts_say_so(tmp_path: Path, make: Callable[[Path], Path], says: str) -> None:
    with pytest.raises(DataReadError, match=says):
        read_documents(str(make(tmp_path)))


def test_a_text_is_in_one_split_as_a_whole() -> None:
    many = [f"text {n}" for n in range(100)]
    found, reading = divide_documents({"all": many}, seed=0)
    assert sorted(text for split in found.values() for text in split) == sorted(many)
    assert [len(found[split]) for split in SPLITS] == [55, 10, 15, 20]
    assert "100 texts: 55 in train" in reading.facts[0]
    given, _ = divide_documents({"train": many, "test": ["a", "b"]}, seed=0)
    assert given["test"] == ["a", "b"] and len(given["train"]) > len(given["validation"]) > 0
    with pytest.raises(DataReadError, match="3 texts are too few"):
        divide_documents({"all": many[:3]}, seed=0)


def test_a_package_is_a_source_and_its_content_is_part_of_the_key() -> None:
    assert (package_folder("json") / "decoder.py").is_file()
    assert fingerprint({"decoder": "package:json"}, Path()).keys() == {"decoder"}
    with pytest.raises(DataReadError, match="no package 'nowhere' is installed"):
        package_folder("nowhere")


# -- the workload -----------------------------------------------------------------------------------------------------
def test_rows_are_windows_of_texts_and_no_row_is_in_two_splits(tmp_path: Path) -> None:
    made = workload(tmp_path)
    splits = made.splits()
    assert len(splits["test"]["tokens"]) == 8  # a row of each text
    assert len(splits["train"]["tokens"]) > 3 * 22  # all of them
    rows = [row.tobytes() for split in SPLITS for row in splits[split]["tokens"]]
    assert len(rows) == len(set(rows))
    assert all(np.array_equal(columns["tokens"], columns[TARGET]) for columns in splits.values())
    few = workload(tmp_path, rows=7).splits()["train"]["tokens"]
    numbers = [next(n for n, row in enumerate(splits["train"]["tokens"]) if np.array_equal(row, each)) for each in few]
    assert len(few) == 7 and numbers == sorted(numbers)
    assert numbers[-1] - numbers[0] > 0.9 * len(splits["train"]["tokens"]), "of all texts, not of the first"
    again = workload(tmp_path)
    assert again.causal_tokenizer() == made.causal_tokenizer()
    assert np.array_equal(again.splits()["train"]["tokens"], splits["train"]["tokens"])


def test_texts_that_few_rows_are_taken_of_are_not_all_cut_into_tokens() -> None:
    many = ["abcd" * 10] * 100
    assert causal_lm._some(many, 10**6) is many
    assert 10 <= len(causal_lm._some(many, 400)) <= 11
    assert len(causal_lm._some(["a" * 10**6], 10)) == 1


def test_short_texts_are_joined(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": f"dog {n}"}) for n in range(200)))
    splits = CausalLM(str(tmp_path / "t.jsonl"), tokens=8, vocabulary=300).splits()
    assert all(len(splits[split]["tokens"]) > 3 for split in SPLITS)
    assert (splits["train"]["tokens"] == 0).any()  # the token that ends a text
    with pytest.raises(DataReadError, match="are shorter than 4096 tokens together"):
        CausalLM(str(tmp_path / "t.jsonl"), tokens=4096, vocabulary=300).splits()


def test_what_it_learns_and_how_it_is_judged(tmp_path: Path) -> None:
    user = workload(tmp_path)
    ref = WorkloadRef(path="winnow:CausalLM", arguments={})
    made, columns = Workload(user, ref), user.splits()
    model = made.model("teacher", layers="half", width=0.34)
    assert isinstance(model, CausalDecoder) and len(model.layers) == 2
    tokens = torch.from_numpy(columns["test"]["tokens"])
    with torch.no_grad():
        outputs = model.eval()(tokens)
    assert outputs.shape == (8, 15) and (outputs < 0).all()
    scores = made.scores(outputs.numpy(), columns["test"][TARGET])
    np.testing.assert_allclose(scores, -outputs.numpy().mean(1), rtol=1e-5)
    assert float(made.loss(outputs, tokens)) == pytest.approx(scores.mean(), rel=1e-5)
    settled = settle_task(made, (-1, 15), {name: split[TARGET] for name, split in columns.items()})
    assert (settled.kind, settled.metric.name, settled.metric.better) == ("other", "nats", "lower")


def test_a_pretrained_decoder_and_its_tokenizer(tmp_path: Path) -> None:
    folder = decoder_folder(tmp_path / "hf", "qwen2")
    new_causal_tokenizer([TEXT * 3], size=300).save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    cutting = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cutting.enable_truncation(20)  # as whoever trained it may have left it
    cutting.enable_padding(length=30)
    cutting.save(str(folder / "tokenizer.json"))
    made = workload(tmp_path, decoder=str(folder))
    assert len(made.splits()["train"]["tokens"]) > 3 * 22  # whole texts
    model, student = made.model("teacher"), made.model("student", layers="two_thirds")
    assert isinstance(model, CausalDecoder) and isinstance(student, CausalDecoder)
    assert list(student.layers) == ["0", "2"]  # the first and the last
    assert torch.equal(student.words.weight, model.words.weight)
    assert made.chat_template() == "{{ messages }}" and made.splits()["train"]["tokens"].max() < 300
    with pytest.raises(DataReadError, match="tokens 65 is more than the 64 of context"):
        workload(tmp_path, decoder=str(folder), tokens=65).model("teacher")
    assert list(made.model("student", layers=[1, 2]).layers) == ["1", "2"]  # type: ignore[arg-type]
    for wrong, says in (
        ("most", "layers 'most' must be one of all, two_thirds"),
        (4, "layers 4 must be from 1 to 3"),
        (0, "layers 0 must be"),
        ([2, 1], r"layers \[2, 1\] must be ascending numbers from 0 to 2"),
        ([], r"layers \[\] must be"),
        ([0, 3], r"layers \[0, 3\] must be"),
    ):
        with pytest.raises(SpecError, match=says):
            made.model("student", layers=wrong)  # type: ignore[arg-type]
    new_causal_tokenizer([TEXT * 3], size=400).save(str(folder / "tokenizer.json"))
    (tmp_path / "hf2").mkdir()
    other = json.loads((folder / "tokenizer.json").read_text())
    other["model"]["vocab"]["~~~"] = 300
    (folder / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(DataReadError, match="another model's tokenizer"):
        workload(tmp_path, decoder=str(folder)).causal_tokenizer()


def test_a_student_has_the_layers_that_change_most_in_its_teacher(tmp_path: Path) -> None:
    folder = decoder_folder(tmp_path / "hf", "llama")
    new_causal_tokenizer([TEXT * 3], size=300).save(str(folder / "tokenizer.json"))
    made = workload(tmp_path, decoder=str(folder))
    teacher = made.model("teacher").eval()
    assert isinstance(teacher, CausalDecoder)
    with torch.no_grad():  # the last two pass on what they are given, all but and altogether
        for name, weight in teacher.named_parameters():
            if name.endswith(("out.weight", "down.weight")) and ".0." not in name:
                weight.mul_(0.0 if ".1." in name else 1e-3)
    inputs = {"tokens": torch.from_numpy(made.splits()["train"]["tokens"][:4])}
    found = block_influence(dict(teacher.layers.items()), lambda: teacher(**inputs))
    assert found["0"] > found["2"] > found["1"] == pytest.approx(0.0, abs=1e-6)
    workload_ = Workload(made, WorkloadRef(path="winnow:CausalLM"))
    for scale, wanted in (
        ({"layers": "two_thirds"}, {"layers": [0, 2]}),
        ({"layers": 1, "width": 0.5}, {"layers": [0], "width": 0.5}),
        ({"layers": [1, 2]}, {"layers": [1, 2]}),
        ({"layers": "all"}, {"layers": "all"}),
        ({}, {}),
    ):
        assert settled_scale(workload_, scale, teacher, inputs) == wanted
    assert settled_scale(workload_, {"layers": "half"}, torch.nn.Linear(2, 2), inputs) == {"layers": "half"}
    with pytest.raises(SpecError, match="layers 9 must be from 1 to 3"):
        settled_scale(workload_, {"layers": 9}, teacher, inputs)


def test_a_pretrained_decoder_of_fewer_tokens_answers_as_before_among_those(tmp_path: Path) -> None:
    folder = decoder_folder(tmp_path / "hf", "llama")
    new_causal_tokenizer([TEXT, "jumping wizards " * 999], size=300).save(str(folder / "tokenizer.json"))
    whole, made = workload(tmp_path, decoder=str(folder)), workload(tmp_path, decoder=str(folder), vocabulary=288)
    splits = made.splits()
    assert max(rows["tokens"].max() for rows in splits.values()) < 288
    assert any("288 of 300 tokens are kept" in fact for fact in splits.reading.facts)  # type: ignore[attr-defined]
    model, before = made.model("teacher").eval(), whole.model("teacher").eval()
    assert isinstance(model, CausalDecoder) and isinstance(before, CausalDecoder)
    assert model.words.weight.shape[0] == model.head_weight.shape[0] == 288
    names, former = (Tokenizer.from_str(each.causal_tokenizer()) for each in (made, whole))
    kept = torch.tensor([former.token_to_id(str(names.id_to_token(number))) for number in range(288)])
    assert kept[torch.tensor([model.shape.begin, *model.shape.end])].tolist() == [1, 2]
    tokens = torch.from_numpy(splits["test"]["tokens"])
    with torch.no_grad():
        asked = before.logits(before.states(kept[tokens]))[..., kept]
        assert torch.allclose(model.logits(model.states(tokens)), asked, atol=1e-6)
    known = made.known()
    assert known is not None and json.loads(json.dumps(known)) == known and whole.known() is None
    for file in (tmp_path / "texts").iterdir():
        file.write_text("wizards jump " * 40 + file.name)
    later = CausalLM(str(tmp_path / "texts"), tokens=16, decoder=str(folder), vocabulary=288)
    later.recall(known)  # as a later stage does: no number may stand for another token by then
    assert later.causal_tokenizer() == made.causal_tokenizer()
    again = later.model("teacher")
    assert isinstance(again, CausalDecoder) and torch.equal(again.words.weight, model.words.weight)
    student = made.model("student", layers="half")
    assert isinstance(student, CausalDecoder) and torch.equal(student.words.weight, model.words.weight)
    with pytest.raises(DataReadError, match="vocabulary 262 is too small"):
        workload(tmp_path, decoder=str(folder), vocabulary=262).splits()


def test_a_gguf_file_or_a_folder_with_one(tmp_path: Path) -> None:
    folder = tmp_path / "gguf"
    folder.mkdir()
    file = gguf(folder / "a.gguf")
    for named in (file, folder):
        made = workload(tmp_path, decoder=str(named))
        assert isinstance(made.model("teacher"), CausalDecoder)
        assert made.chat_template() == "{{ messages[0].content }}"
    assert "smollm" not in made.causal_tokenizer() and "Digits" in made.causal_tokenizer()
    gguf(folder / "b.gguf")
    with pytest.raises(DataReadError, match=r"holds 2 GGUF files; name one of them: a\.gguf"):
        workload(tmp_path, decoder=str(folder)).chat_template()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"tokens": 4}, "tokens 4 must be from 8 to 4096"),
        ({"vocabulary": 10}, "vocabulary 10 must be from 260"),
        ({"rows": 1}, "rows 1 must be at least 2"),
        ({"source": {"train": "a", "dev": "b"}}, r"source names the splits \['dev'\]"),
    ],
)
def test_arguments_that_are_refused(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(DataReadError, match=says):
        CausalLM(**{"source": "x", **arguments}).read()  # type: ignore[arg-type]


def test_the_standard_library_is_there(tmp_path: Path) -> None:
    read = StandardLibrary(["json", "email"]).read()["all"]
    assert 15 < len(read) < 60 and any("class JSONDecoder" in text for text in read)
