"""``winnow run text`` on a small file of texts: from a table to an endpoint that is asked in words."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunningStack
from forked_runs import Forks
from winnow_command import Winnow

TOPICS = {"food": ("bread", "soup", "salt"), "films": ("scene", "actor", "plot"), "code": ("loop", "bug", "test")}
SMALL = (
    "workload.path=winnow:Text",
    "workload.arguments={source: texts.csv, target: topic, tokens: 12, vocabulary: 300}",
    *(
        "train.epochs=3",
        "train.batch_size=16",
        "distill.epochs=2",
        "distill.batch_size=16",
        "distill.learning_rate=0.01",
    ),
    *("budget.max_accuracy_drop=0.9", "search.minutes=5", "search.shrink=[]", "search.students=[{network: bag}]"),
    *("search.rungs=1", "search.control=false", "measure.rounds=5", "measure.seconds=0.1"),
    *("gates.per_class_margin=null", "gates.floor=null"),
)


def write_texts(file: Path) -> None:
    """Texts of which a third of the words tell the topic, all of them different."""
    draw = np.random.default_rng(0)
    with file.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["text", "topic"])
        for number in range(360):
            topic = list(TOPICS)[number % 3]
            words = [
                str(draw.choice(TOPICS[topic])) if place % 3 == 0 else f"w{draw.integers(30)}" for place in range(9)
            ]
            rows.writerow([" ".join(words), topic])


@pytest.fixture(scope="module")
def ran(stack: RunningStack, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> tuple[Winnow, dict[str, Any]]:
    command = Winnow(tmp_path_factory.mktemp("texts"), stack.home, forks)
    write_texts(command.folder / "texts.csv")
    return command, command.report("text", *(part for override in SMALL for part in ("--set", override)))


def test_a_search_of_texts_tries_a_bag_of_words_beside_the_encoder(ran: tuple[Winnow, dict[str, Any]]) -> None:
    _, report = ran
    assert report["status"] == "released"
    assert {"teacher.fp32", "student1-r1.fp32"} <= {variant["name"] for variant in report["variants"]}
    rows = {row["name"]: row for row in report["search"]["candidates"]}
    assert rows["student1"]["settings"]["scale"] == {"network": "bag"}
    cheapest = min(form["p50_ms"] for form in rows["student1"]["forms"])
    assert cheapest < min(form["p50_ms"] for form in rows["teacher"]["forms"])


def test_the_report_says_what_the_words_alone_tell(ran: tuple[Winnow, dict[str, Any]]) -> None:
    _, report = ran
    (told,) = [note for note in report["notes"] if "a bag of words" in note]
    assert re.search(r"trained on the same \d+ texts .* has accuracy \d+\.\d % on the test split", told)


def test_the_example_request_is_words(ran: tuple[Winnow, dict[str, Any]]) -> None:
    _, report = ran
    body = json.loads(shlex.split(report["curl"])[-1])
    (sent,) = body["inputs"]
    assert (sent["name"], sent["datatype"], sent["shape"]) == ("text", "BYTES", [1])
    assert " " in sent["data"][0] and "[SEP]" not in sent["data"][0]
    done = subprocess.run(["bash", "-c", report["curl"]], capture_output=True, text=True, check=True)
    (label,) = (out["data"] for out in json.loads(done.stdout)["outputs"] if out["name"] == "label")
    assert label[0] in TOPICS


def test_rows_of_a_file_are_answered(ran: tuple[Winnow, dict[str, Any]]) -> None:
    command, report = ran
    file = command.folder / "asked.csv"
    file.write_text('text\n"bread w1, salt\nsoup w2"\nloop bug w1 test\n', encoding="utf-8")
    done = command("predict", report["model"], "--input", str(file), "--output", "label")
    assert done.returncode == 0, done.stderr
    labels = [json.loads(line)["label"] for line in done.stdout.splitlines()]
    assert labels == ["food", "code"]
