"""Texts in several files: read as one table, with the splits that one file with the same rows has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from encoder_folders import encoder_folder

from model_registry.store import Store
from tasks.readers.documents import read_documents
from tasks.readers.splitting import Divided
from tasks.running.errors import DataReadError
from tasks.workloads.sentence_vectors import SentenceVectors
from tasks.workloads.text import Text
from tasks.workloads.text_labels import TextLabels
from tasks.workloads.text_tags import TextTags

Row = dict[str, Any]
WORDS = ("bread", "soup", "salt", "scene", "actor", "plot")
KNOWN = ("good", "bad", "film", "food", "very", "not", "the", "was")
"""Words of the encoder that the tests make."""
SMALL: dict[str, Any] = {"tokens": 12, "vocabulary": 300}


def rows(count: int = 90) -> list[Row]:
    draw = np.random.default_rng(0)
    found = []
    for number in range(count):
        words = [str(draw.choice(WORDS)), *(f"w{n}" for n in draw.integers(0, 40, 4)), f"n{number}"]
        labels = sorted(set(words) & set(WORDS[:4])) or ["other"]
        tags = ["B-X" if word in WORDS else "O" for word in words]
        said = " ".join(draw.choice(KNOWN, 7))
        row = {
            "text": " ".join(words),
            "words": words,
            "target": words[0],
            "labels": labels,
            "tags": tags,
            "said": said,
        }
        found.append(row)
    return found


def filed(folder: Path, found: Sequence[Row], files: int, kind: str = "jsonl") -> str:
    """The rows in so many files of about one size; the pattern that names them."""
    folder.mkdir()
    for number, chosen in enumerate(np.array_split(np.arange(len(found)), files)):
        part, name = pd.DataFrame([found[row] for row in chosen]), folder / f"part-{number}.{kind}"
        if kind == "jsonl":
            name.write_text("\n".join(json.dumps(found[row]) for row in chosen))
        elif kind == "csv":
            part[["text", "target"]].to_csv(name, index=False)
        else:
            part.to_parquet(name, index=False)
    return f"{folder}/*.{kind}"


def held(workload: Any) -> dict[str, bytes]:
    splits = workload.splits()
    assert isinstance(splits, Divided)
    numbers = {f"{split}.rows": np.asarray(chosen).tobytes() for split, chosen in splits.source_rows.items()}
    return numbers | {f"{s}.{n}": v.tobytes() for s, columns in splits.items() for n, v in columns.items()}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_five_files_are_one(kind: str, tmp_path: Path) -> None:
    one = Text(filed(tmp_path / "one", rows(), 1, kind), **SMALL)
    five = Text(filed(tmp_path / "five", rows(), 5, kind), **SMALL)
    assert held(five) == held(one)
    assert five.tokenizer() == one.tokenizer()
    reading = five.splits()
    assert isinstance(reading, Divided)
    assert reading.reading.facts[0].startswith(f"{tmp_path}/five/*.{kind}: 5 files, 90 rows. Texts: 'text'.")


def test_labels_tags_and_vectors_come_in_several_files_too(tmp_path: Path) -> None:
    patterns = [filed(tmp_path / str(files), rows(), files) for files in (1, 4)]
    encoder = str(encoder_folder(tmp_path / "encoder"))
    for one, four in (
        [TextLabels(pattern, target="labels", **SMALL) for pattern in patterns],
        [TextTags(pattern, text="words", target="tags", **SMALL) for pattern in patterns],
        [SentenceVectors(pattern, encoder, text="said", tokens=12) for pattern in patterns],
    ):
        assert held(four) == held(one)
    assert read_documents(patterns[0]) == read_documents(patterns[1]) == [row["text"] for row in rows()]


def test_the_order_of_the_rows_changes_no_split(tmp_path: Path) -> None:
    def homes(workload: Text) -> dict[str, list[bytes]]:
        splits = workload.splits()
        return {split: [row.tobytes() for row in columns["tokens"]] for split, columns in splits.items()}

    mixed = [rows()[row] for row in np.random.default_rng(5).permutation(90)]
    one = homes(Text(filed(tmp_path / "one", rows(), 1), **SMALL))
    assert homes(Text(filed(tmp_path / "mixed", mixed, 6), **SMALL)) == one, "the same tokenizer, too"
    assert sum(map(len, one.values())) == 90


def test_a_gap_in_one_file_is_a_gap_and_no_other_kind(tmp_path: Path) -> None:
    found: list[Row] = [{"text": row["text"], "target": number % 3} for number, row in enumerate(rows())]
    found[70]["target"] = None
    whole = filed(tmp_path / "gap", found, 3)
    with pytest.raises(DataReadError, match=r"part-2.jsonl: 1 row \(10\) of 30 have no 'target'"):
        Text(whole, **SMALL).splits()
    assert Text(whole, unlabelled="drop", **SMALL).labels() == ["0", "1", "2"]
    for row in found[60:]:
        row["target"] = None
    none = Text(filed(tmp_path / "none", found, 3), unlabelled="drop", **SMALL)
    assert none.labels() == ["0", "1", "2"] and sum(len(c["target"]) for c in none.splits().values()) == 60


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"target": "soup", "text": None}, r"b.jsonl has no column 'text'; it has 'target'"),
        ({"target": 7}, r"b.jsonl holds whole numbers in column 'target', and \S+a.jsonl text"),
        ({"target": 0.5}, r"column 'target' of \S+b.jsonl holds float64; a class is text or a whole number"),
    ],
)
def test_files_that_do_not_fit_each_other_are_named(change: Row, says: str, tmp_path: Path) -> None:
    found = [{"text": row["text"], "target": row["target"]} for row in rows(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, found)))
    changed = [{key: value for key, value in {**row, **change}.items() if value is not None} for row in found]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, changed)))
    with pytest.raises(DataReadError, match=says):
        Text(f"{tmp_path}/*.jsonl", **SMALL).splits()
    with pytest.raises(DataReadError, match="names no file; the star stands for"):
        Text(f"{tmp_path}/*.csv", **SMALL).splits()


@pytest.mark.slow
def test_texts_in_s3_come_in_several_objects_too(store: Store, tmp_path: Path) -> None:
    local = filed(tmp_path / "local", rows(), 3)
    for file in (tmp_path / "local").iterdir():
        store.put(f"user/{file.name}", file.read_bytes())
    assert held(Text(f"s3://{store.bucket}/user/*.jsonl", **SMALL)) == held(Text(local, **SMALL))
