"""Sentence vectors from a folder with an encoder to an endpoint that answers texts with vectors."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import RunningStack
from encoder_folders import FEATURES, encoder_folder
from forked_runs import Forks
from patience import PATIENCE
from winnow_command import Winnow

import winnow

WORDS = ("good", "bad", "film", "food", "very", "not", "the", "was")
SPEC = {
    "schema": 1,
    "model": "sentences",
    "workload": {
        "path": "winnow:SentenceVectors",
        "arguments": {"source": "pairs.csv", "encoder": "encoder", "query": "query", "tokens": 16},
    },
    "teacher": {},
    "distill": {"scale": {"layers": "half"}, "control": False, "epochs": 2, "batch_size": 16},
    "quantize": {"methods": ["dynamic"], "tables": 4},
    "budget": {"max_accuracy_drop": 0.9},
    "gates": {"floor": None},
    "measure": {"rounds": 5, "seconds": 0.1},
}


def write_pairs(file: Path) -> None:
    """A query is four of its text's seven words."""
    draw = np.random.default_rng(0)
    with file.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["query", "text"])
        for text in {" ".join(draw.choice(WORDS, 7)) for _ in range(200)}:
            rows.writerow([" ".join(text.split()[:4]), text])


@pytest.fixture(scope="module")
def ran(stack: RunningStack, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> tuple[Winnow, dict[str, Any]]:
    command = Winnow(tmp_path_factory.mktemp("vectors"), stack.home, forks)
    write_pairs(command.folder / "pairs.csv")
    encoder_folder(command.folder / "encoder")
    (command.folder / "sentences.yaml").write_text(yaml.safe_dump(SPEC))
    return command, command.report("sentences.yaml")


def test_the_teacher_is_brought_and_its_student_released(ran: tuple[Winnow, dict[str, Any]]) -> None:
    _, report = ran
    assert report["status"] == "released"
    assert {"teacher.fp32", "student.fp32", "student.int8-dynamic"} <= {
        variant["name"] for variant in report["variants"]
    }
    (rows,) = re.findall(r"Rows: .* test (\d+)\.", " ".join(report["notes"]))
    assert 0 < report["decision"]["samples"] <= int(rows) // 2, "texts are there to be found, and have no score"
    assert {"bring", "distill"} <= {line["name"].split()[0] for line in report["stages"]}


def test_the_endpoint_and_load_answer_texts_with_the_same_vectors(
    ran: tuple[Winnow, dict[str, Any]], stack: RunningStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, report = ran
    done = subprocess.run(["bash", "-c", report["curl"]], capture_output=True, text=True, check=True)
    (output,) = json.loads(done.stdout)["outputs"]
    assert output["shape"] == [1, FEATURES] and output["name"] == "prediction"
    sent = json.loads(report["curl"].partition("-d '")[2].rpartition("'")[0])["inputs"][0]["data"][0]
    for name, value in stack.environment.items():
        monkeypatch.setenv(name, value)
    (vector,) = winnow.load(f"{report['model']}@champion").predict(sent).values()
    assert np.allclose(vector, output["data"], atol=1e-6) and np.isclose(np.linalg.norm(vector), 1)


def test_a_trained_model_is_not_trained_again(ran: tuple[Winnow, dict[str, Any]]) -> None:
    command, _ = ran
    (command.folder / "again.yaml").write_text(yaml.safe_dump({k: v for k, v in SPEC.items() if k != "teacher"}))
    process = command.start_run("again.yaml")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "write `teacher: {}` into the spec, in place of `train`" in " ".join((out + err).split())
