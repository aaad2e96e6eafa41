"""``winnow run smol`` on small texts and a small decoder that is trained on them: from texts to OpenAI's routes."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import RunningStack
from forked_runs import Forks
from test_causal_lm import questions, texts
from winnow_command import Winnow

import winnow

SMALL = (
    "workload.path=winnow:CausalLM",
    "workload.arguments={source: texts, tokens: 16, vocabulary: 300, questions: questions.jsonl}",
    *("teacher=null", "train={epochs: 2, batch_size: 32, learning_rate: 0.003, scale: {width: 0.34}}"),
    "distill={epochs: 1, batch_size: 32, control: false, scale: {layers: half, width: 0.34}}",
    "prune={epochs: 1, ratio: 0.3, batch_size: 32}",
    *("quantize.methods=[weights8, weights4, mixed, dynamic]", "quantize.max_bytes=260_000"),
    "qat={epochs: 1, batch_size: 32, learning_rate: 0.01, alpha: 1}",
    *("budget.max_nats_increase=2", "budget.max_choice_drop=0.9", "budget.min_tokens_per_second=1"),
    *("budget.max_ttft_ms=60000", "measure.rounds=5", "measure.seconds=0.1", "gates.floor=null"),
)


@pytest.fixture(scope="module")
def ran(stack: RunningStack, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> tuple[Winnow, dict[str, Any]]:
    command = Winnow(tmp_path_factory.mktemp("causal"), stack.home, forks)
    texts(command.folder / "texts", 120)
    questions(command.folder / "questions.jsonl", 20)
    return command, command.report("smol", *(part for override in SMALL for part in ("--set", override)))


def test_a_decoder_is_trained_made_small_and_released(ran: tuple[Winnow, dict[str, Any]]) -> None:
    _, report = ran
    assert report["status"] == "released" and report["metric"]["name"] == "nats"
    names = {variant["name"] for variant in report["variants"]}
    parts, forms = ("teacher", "student", "pruned"), ("fp32", "weights8", "weights4", "weights4-qat", "int8-dynamic")
    # 260 kB: the teacher cannot be so small, and what was pruned is it with 8 bits everywhere, as weights8.
    assert names == {f"{part}.{form}" for part in parts for form in forms} | {"student.mixed", "student.mixed-qat"}
    assert any("Left out: mixed of teacher: max_bytes 260000 is less than" in note for note in report["notes"])
    (chosen,) = (row for row in report["variants"] if row["digest"] == report["chosen"])
    assert chosen["name"] in ("pruned.weights4", "pruned.weights4-qat")  # of equal size


def test_the_example_request_is_a_text_to_be_continued(ran: tuple[Winnow, dict[str, Any]]) -> None:
    _, report = ran
    assert "/v1/completions" in report["curl"]
    done = subprocess.run(["bash", "-c", report["curl"]], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["choices"][0]["text"] and answer["usage"]["completion_tokens"] <= 24


def test_in_python_it_is_a_model_like_any_other(
    ran: tuple[Winnow, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, report = ran
    monkeypatch.setenv("WINNOW_HOME", str(command.home))
    model = winnow.load(report["model"])
    scores = model.predict([5, 6, 7])["log_probabilities"]
    assert len(scores) == 2 and all(score < 0 for score in scores)


def test_the_page_shows_it(ran: tuple[Winnow, dict[str, Any]]) -> None:
    command, report = ran
    page = next(Path(command.folder).rglob("report.html"), None) or next(
        (command.home / "runs" / report["run_id"]).rglob("report.html")
    )
    assert "nats" in page.read_text() and "bits per byte" in page.read_text()


def test_it_is_proven_in_the_terms_of_language_models(ran: tuple[Winnow, dict[str, Any]]) -> None:
    _, report = ran
    gates = {gate["gate"]: gate for gate in report["decision"]["gates"]}
    assert all(gates[name]["passed"] for name in ("choices", "decoding", "first_token", "non_inferior_to_baseline"))
    assert not gates["enough_questions"]["passed"] and gates["enough_questions"]["severity"] == "warning"
    scored = {each["role"]: each for each in report["decision"]["scored"]}
    assert scored["chosen"]["choices"]["to_baseline"]["samples"] == 20
    assert scored["baseline"]["choices"]["to_baseline"] is None
    for row in report["variants"]:
        speed = row["token_speed"]
        assert speed["prompt_tokens"] == 16 and speed["ttft_ms"] > 0 and speed["decode"]["value"] > 1
        assert (speed["decode_speedup"] is None) is (row["digest"] == report["baseline"])
        nats, bits = row["metric"]["value"], row["bits_per_byte"]
        assert 0.1 < bits < nats / math.log(2)  # a token has more than a byte
    said = report["continuations"]
    assert said["prompts"] == min(32, report["decision"]["samples"]) and len(said["shown"]) == 6
    assert 0 <= said["alike"]["value"] <= said["kept"]["value"] <= 1


SEARCH = (
    "search={minutes: 5, shrink: [0.7], students: [], rungs: 1, trials: 1, qat: false}",
    *("model=searched-smol", "prune={epochs: 1, batch_size: 32}", "qat=null", "budget.max_choice_drop=null"),
    "objective=size",
)


def test_a_search_finds_the_smallest_form(ran: tuple[Winnow, dict[str, Any]]) -> None:
    command, _ = ran
    report = command.report("smol", *(part for override in (*SMALL, *SEARCH) for part in ("--set", override)))
    assert report["status"] == "released"
    candidates = {row["name"]: row for row in report["search"]["candidates"]}
    assert set(candidates) == {"teacher", "pruned70"}
    assert all(row["state"] != "failed" for row in candidates.values()), candidates
    forms = [form for row in candidates.values() for form in row["forms"] if not form["fails"]]
    assert min(form["bytes"] for form in forms) == report_row(report)["bytes"]
    assert report["chosen"] == report["search"]["best"] and report["continuations"]["prompts"] > 6
    assert "weights4" in report_row(report)["name"]


def report_row(report: dict[str, Any]) -> dict[str, Any]:
    """The chosen variant."""
    (row,) = (row for row in report["variants"] if row["digest"] == report["chosen"])
    found: dict[str, Any] = row
    return found
