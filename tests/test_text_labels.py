"""Several labels for a text: how they are read, what is learned, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tasks.readers.splitting import Divided
from tasks.running.errors import WinnowError
from tasks.running.stage import WorkloadRef
from tasks.workloads.sample_scores import jaccard_scores
from tasks.workloads.task_check import labels_file, settle_task
from tasks.workloads.text_labels import TextLabels
from tasks.workloads.workload import Workload

LABELS = ("food", "films", "code")


def rows(count: int = 90) -> tuple[list[str], list[list[str]]]:
    draw = np.random.default_rng(0)
    found = [sorted(draw.choice(LABELS, draw.integers(0, 3), replace=False).tolist()) for _ in range(count)]
    return [" ".join([*labels, f"w{draw.integers(40)}", f"n{n}"]) for n, labels in enumerate(found)], found


def lines(folder: Path, texts: list[str], labels: list[Any]) -> str:
    file = folder / "rows.jsonl"
    pairs = zip(texts, labels, strict=True)
    file.write_text("\n".join(json.dumps({"text": text, "target": value}) for text, value in pairs))
    return str(file)


def test_lists_and_separated_texts_give_the_same(tmp_path: Path) -> None:
    texts, labels = rows()
    pq.write_table(pa.table({"text": texts, "target": labels}), tmp_path / "rows.parquet")
    joined = "\n".join(f"{text},{' ; '.join(some)}" for text, some in zip(texts, labels, strict=True))
    (tmp_path / "rows.csv").write_text(f"text,target\n{joined}\n")
    made = [
        TextLabels(lines(tmp_path, texts, labels), tokens=12, vocabulary=300),
        TextLabels(str(tmp_path / "rows.parquet"), tokens=12, vocabulary=300),
        TextLabels(str(tmp_path / "rows.csv"), separator=";", tokens=12, vocabulary=300),
    ]
    ours, *others = (workload.splits() for workload in made)
    assert made[0].labels() == sorted(LABELS)
    assert sum(len(columns["target"]) for columns in ours.values()) == 90
    assert ours["train"]["target"].sum(axis=1).min() == 0, "a text may have none"
    for other in others:
        for name, columns in ours.items():
            assert np.array_equal(columns["target"], other[name]["target"]), name


def test_a_logit_for_each_label_is_learned(tmp_path: Path) -> None:
    texts, labels = rows()
    user = TextLabels(lines(tmp_path, texts, labels), tokens=12, vocabulary=300)
    workload, splits = Workload(user, WorkloadRef(path="x:Y")), user.splits()
    target = splits["train"]["target"]
    settled = settle_task(workload, (-1, 3), {name: columns["target"] for name, columns in splits.items()})
    assert (settled.kind, settled.metric.name, settled.metric.builtin) == ("labels", "jaccard", True)
    assert labels_file(settled.kind) is not None, "the endpoint names the labels"
    right = torch.from_numpy(20.0 * target.astype(np.float32) - 10)
    assert workload.loss(right, torch.from_numpy(target)) < 1e-3 < workload.loss(-right, torch.from_numpy(target))
    assert user.model("student", network="bag")(torch.from_numpy(splits["test"]["tokens"])).shape[1] == 3


def test_labels_of_other_splits_only_are_nobody_s(tmp_path: Path) -> None:
    texts, labels = rows()
    for name, more in (("train", []), ("test", ["rare"])):
        (tmp_path / name).mkdir()
        lines(tmp_path / name, [f"{name} {text}" for text in texts], [[*some, *more] for some in labels])
    source = {name: str(tmp_path / name / "rows.jsonl") for name in ("train", "test")}
    user = TextLabels(source, tokens=12, vocabulary=300)
    splits = user.splits()
    assert user.labels() == sorted(LABELS) and splits["test"]["target"].shape == (90, 3)
    assert isinstance(splits, Divided)
    assert splits.reading.findings == ("labels that train has not count for no text: 'rare' 90",)


def test_the_metric_is_the_share_of_right_labels_among_all() -> None:
    targets = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]])
    outputs = np.array([[3, -3, 3], [-1, -1, -1], [1, -1, -1], [2, -2, -2], [np.nan, -2, -2]])
    assert jaccard_scores(outputs, targets).tolist() == pytest.approx([1 / 3, 1, 0, 1, 0])


@pytest.mark.parametrize(
    ("labels", "change", "text"),
    [
        (["food;films"] * 90, {}, r"holds 'food;films' in row 0, which is no list; give lists of texts in JSON lines"),
        ([["food", None]] * 90, {}, "holds a list with nothing in it, in row 0; a list holds texts"),
        ([["food"]] * 90, {}, "of train hold only 'food'; at least two labels are needed"),
        ([[]] * 90, {}, "of train hold nothing; at least two labels are needed"),
        ([None, *[["food"], ["films"]] * 44, []], {}, r"1 row .0. of 90 have no 'target' to predict"),
        ([["food"]] * 90, {"separator": ""}, "separator '' divides nothing"),
        ([["food"]] * 90, {"target": "tags"}, r"have no column 'tags'; they have \['target', 'text'\]"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, labels: list[Any], change: dict[str, Any], text: str) -> None:
    source = lines(tmp_path, rows()[0], labels)
    with pytest.raises(WinnowError, match=text):
        TextLabels(source, tokens=12, vocabulary=300, **change).splits()
