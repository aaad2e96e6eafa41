"""``winnow run text``, made small: from docstrings to an endpoint that is asked in words."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import RunningStack
from forked_runs import Forks
from winnow_command import Winnow

SMALL = (
    "workload.arguments={packages: [json, email, asyncio, unittest], rows: 120, tokens: 16, vocabulary: 400}",
    *("train.epochs=3", "distill.epochs=2", "budget.max_accuracy_drop=0.9", "search.minutes=5"),
    *("search.shrink=[]", "search.students=[{network: bag}]", "search.rungs=1", "search.control=false"),
    *("measure.rounds=5", "measure.seconds=0.1", "gates.per_class_margin=null", "gates.floor=null"),
    *("data.balance=skip", "data.duplicates=skip"),
)


@pytest.fixture(scope="module")
def ran(stack: RunningStack, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> tuple[Winnow, dict[str, Any]]:
    command = Winnow(tmp_path_factory.mktemp("texts"), stack.home, forks)
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
    assert label[0] in {"json", "email", "asyncio", "unittest"}


def test_rows_of_a_file_are_answered(ran: tuple[Winnow, dict[str, Any]]) -> None:
    command, report = ran
    file = Path(command.folder) / "texts.csv"
    file.write_text('text\n"Parse a header, and its\nfolded lines"\nReturn the running loop\n', encoding="utf-8")
    done = command("predict", report["model"], "--input", str(file), "--output", "label")
    assert done.returncode == 0, done.stderr
    labels = [json.loads(line)["label"] for line in done.stdout.splitlines()]
    assert len(labels) == 2 and set(labels) <= {"json", "email", "asyncio", "unittest"}
