"""Texts in many files, a partition at a time: what becomes of them does not depend on how they are filed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.json as pj
import pyarrow.parquet as pq
import pytest
from encoder_folders import encoder_folder

from tasks.readers import source_parts
from tasks.readers.jsonl_reader import line_blocks
from tasks.readers.row_buckets import drawn_splits
from tasks.readers.splitting import FRACTIONS
from tasks.readers.tables import read_table
from tasks.running.errors import DataReadError
from tasks.running.splits import SPLITS
from tasks.workloads import text_parts
from tasks.workloads.text import Text

SMALL: dict[str, Any] = {"tokens": 48, "vocabulary": 300}


def filed(folder: Path, rows: list[dict[str, Any]], files: int = 1, ending: str = "jsonl") -> str:
    """The pattern of so many files with these rows."""
    folder.mkdir()
    for number, chosen in enumerate(np.array_split(np.arange(len(rows)), files)):
        name, part = folder / f"{number}.{ending}", [rows[row] for row in chosen]
        text = "\n".join(map(json.dumps, part))
        if ending == "parquet":
            pd.DataFrame(part).to_parquet(name, row_group_size=7)
        else:
            name.write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    return f"{folder}/*.{ending}"


def said(count: int = 300) -> list[dict[str, Any]]:
    draw = np.random.default_rng(3)
    words = [f"word{number}" for number in range(60)]
    return [{"text": " ".join(draw.choice(words, 4)), "target": f"c{number % 3}"} for number in range(count)]


def everything(workload: Text) -> dict[str, bytes]:
    return {f"{s}.{n}": v.tobytes() for s, columns in workload.splits().items() for n, v in columns.items()}


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "parquet"])
def test_partitions_and_blocks_of_any_size_come_to_the_same(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Text(filed(tmp_path / "one", said()), **SMALL)
    wanted = everything(whole)
    monkeypatch.setattr(source_parts, "_BLOCK_BYTES", 256)
    monkeypatch.setattr(text_parts, "_PART_BYTES", 500)
    many = Text(filed(tmp_path / "many", said(), 4, ending), **SMALL)
    parts = list(many.partitions(tmp_path / "rows") or ())
    assert len(parts) > 10 and parts[0].reading.facts and not parts[1].reading.facts
    found = {
        f"{split}.{name}": b"".join(part[split][name].tobytes() for part in parts)
        for split in SPLITS
        for name in ("tokens", "target")
    }
    assert found == wanted
    rows = [row for split in SPLITS for part in parts for row in part.source_rows[split].tolist()]
    assert sorted(rows) == list(range(300))


def test_what_was_learned_is_handed_on_and_no_file_is_read_again(tmp_path: Path) -> None:
    source = filed(tmp_path / "some", said(), 2)
    first = Text(source, **SMALL)
    known = json.loads(json.dumps(first.known()))
    assert len(json.dumps(known)) < len(first.tokenizer()), "packed"
    for file in (tmp_path / "some").iterdir():
        file.unlink()
    later = Text(source, **SMALL)
    later.recall(known)
    assert later.labels() == ["c0", "c1", "c2"] and later.tokenizer() == first.tokenizer()
    assert later.model("student", network="bag") is not None
    assert Text(str(tmp_path / "one.jsonl")).known() is None, "a file by itself is held in memory"


def test_tokens_are_in_one_split_only_and_targets_by_the_train_rows(tmp_path: Path) -> None:
    rows = [{"text": f"the same eight words and then other{n} it goes {n}", "target": "ab"[n % 2]} for n in range(60)]
    rows += [{"text": f"a text of its own number {n}", "target": "ab"[n % 2]} for n in range(60)]
    made = Text(filed(tmp_path / "alike", rows, 3), tokens=6, vocabulary=300).splits()
    of_split = {split: {row.tobytes() for row in columns["tokens"]} for split, columns in made.items()}
    for one in SPLITS:
        assert not any(of_split[one] & of_split[other] for other in SPLITS if other != one)
    assert any("they are the texts of rows in another split" in finding for finding in made.reading.findings)  # type: ignore[attr-defined]


def test_a_label_that_train_has_not_is_no_class(tmp_path: Path) -> None:
    seen = set()
    for number in range(8):
        rare = [*said(), {"text": f"rare {number}", "target": "rare"}]
        found = Text(filed(tmp_path / str(number), rare), **SMALL)
        targets = {target for columns in found.splits().values() for target in columns["target"].tolist()}
        known = "rare" in found.labels()
        assert (-1 in targets) != known
        seen.add(known)
    assert seen == {True, False}


def test_pairs_and_pretrained_encoders_come_in_parts_too(tmp_path: Path) -> None:
    encoder = str(encoder_folder(tmp_path / "encoder"))
    words = ("good", "bad", "film", "food", "very", "not", "the", "was")
    draw = np.random.default_rng(0)
    rows = [
        {"one": " ".join(draw.choice(words, 5)), "two": " ".join(draw.choice(words, 5)), "target": int(n % 2)}
        for n in range(200)
    ]
    arguments: dict[str, Any] = {"text": "one", "pair": "two", "encoder": encoder, "tokens": 16}
    made = [Text(filed(tmp_path / str(files), rows, files), **arguments) for files in (1, 3)]
    assert everything(made[0]) == everything(made[1])
    assert made[0].known() == {"labels": ["0", "1"], "packed": ""} and made[0].texts == 2


def test_the_split_is_drawn_from_the_text_alone(tmp_path: Path) -> None:
    few, more = (Text(filed(tmp_path / name, said(count)), **SMALL) for name, count in (("few", 200), ("more", 300)))
    home = {}
    for workload, count in ((few, 200), (more, 300)):
        splits = workload.splits()
        rows = {split: splits.source_rows[split].tolist() for split in SPLITS}  # type: ignore[attr-defined]
        home[count] = {row: split for split in SPLITS for row in rows[split]}
    assert all(home[300][row] == split for row, split in home[200].items()), "others are added, and it stays"
    shares = {split: list(home[300].values()).count(split) / 300 for split in SPLITS}
    assert all(abs(shares[split] - share) < 0.1 for split, share in FRACTIONS.items())
    assert [len(p) for p in drawn_splits(np.zeros(3, np.uint64), FRACTIONS).values()] == [3, 0, 0, 0]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (said(3), r"3 rows are too few to divide: .* would be empty; bring more"),
        ([{**row, "target": "one"} for row in said()], r"of train has only the value 'one'; at least two classes"),
        (
            [{**row, "target": 0.5} for row in said()],
            r"column 'target' of .* holds float64; a class is text",
        ),
        ([{"text": row["text"]} for row in said()], r"has no column 'target'; it has 'text'"),
    ],
)
def test_what_cannot_be_learned_from_is_said(rows: list[dict[str, Any]], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataReadError, match=says):
        Text(filed(tmp_path / "odd", rows), **SMALL).splits()


def test_lines_are_never_cut(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    lines = [b'{"a": %d}' % (10**number) for number in range(30)]
    file.write_bytes(b"\n".join(lines) + b"\n\n")
    for size in (1, 7, 40, 10_000):
        assert [line for block in line_blocks(file, size) for line in block.split(b"\n") if line] == lines


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_what_does_not_fit_the_memory_is_no_broken_file(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise pa.ArrowMemoryError("malloc of size 7562624 failed")

    file = tmp_path / f"large.{ending}"
    file.write_text('{"a": 1}\n')
    for module, name in ((pc, "read_csv"), (pj, "read_json"), (pq, "ParquetFile")):
        monkeypatch.setattr(module, name, full)
    with pytest.raises(MemoryError, match="malloc of size"):
        read_table(str(file))
