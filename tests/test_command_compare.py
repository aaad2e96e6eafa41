"""winnow runs, show, compare and pull, as a person runs them: in a process, against a real store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from measured_models import linear, make_variant
from measurements import run_report

from model_registry.ledger import Ledger
from model_registry.owner import Owner
from model_registry.store import Store
from tasks.report.run_report import save_run


def winnow(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows.commands.cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No embedded stack here: the store of the environment is used."""
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def three_runs(store: Store, home: Path) -> Store:
    """A released run, a failed one after it, and one whose process is gone."""
    first = run_report("released")
    save_run(store, first)
    later = first.started + timedelta(hours=1)
    save_run(store, run_report("failed", run_id="20261122-130455-digits-aaaa", started=later))
    gone = Owner.current().model_copy(update={"started": 1})
    dead = run_report("running", run_id="20261122-140455-blobs-bbbb", model="blobs", owner=gone, started=later)
    save_run(store, dead)
    return store


def test_runs_lists_them_newest_first_and_sees_the_dead(three_runs: Store) -> None:
    done = winnow("runs", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["schema"] == 1
    assert [(r["run_id"][-4:], r["status"]) for r in found["runs"]] == [
        ("bbbb", "crashed"),
        ("aaaa", "failed"),
        ("3f9a", "released"),
    ]
    assert found["runs"][2]["chosen_name"] == "pruned.int8-static" and found["runs"][1]["error"] == "StageOutOfMemory"
    only = json.loads(winnow("runs", "--json", "--model", "digits", "-n", "1").stdout)
    assert [r["run_id"] for r in only["runs"]] == ["20261122-130455-digits-aaaa"]
    table = winnow("runs").stdout
    assert "crashed" in table and "20261122-120455-digits-3f9a" in table and "2 min 28 s" in table


def test_show_finds_a_run_by_id_beginning_and_latest(three_runs: Store) -> None:
    whole = json.loads(winnow("show", "20261122-120455-digits-3f9a", "--json").stdout)
    assert whole["schema"] == 1 and whole["status"] == "released" and len(whole["variants"]) == 10
    assert json.loads(winnow("show", "20261122-12", "--json").stdout) == whole
    text = winnow("show", "20261122-12").stdout
    assert "pruned.int8-static" in text and "validate" in text and "curl -s http" in text
    assert "died without a word" in winnow("show", "latest").stdout
    missing = winnow("show", "nothing-like-it")
    assert missing.returncode == 1 and "`winnow runs`" in missing.stderr


def test_compare_takes_the_latest_run_that_measured_something(three_runs: Store) -> None:
    done = winnow("compare", "digits", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["run_id"] == "20261122-120455-digits-3f9a" and len(found["variants"]) == 10
    assert {"metric", "hardware", "baseline", "chosen"} <= found.keys()
    assert "teacher.int8-dynamic" in winnow("compare", "digits").stdout
    empty = winnow("compare", "blobs")
    assert empty.returncode == 1 and "measured no variant" in empty.stderr


def test_pull_writes_the_verified_champion(store: Store, home: Path) -> None:
    target = home / "digits.onnx"
    nothing = winnow("pull", "blobs", "-o", str(target))
    assert nothing.returncode == 1 and "no champion" in nothing.stderr and "winnow run" in nothing.stderr
    assert not target.exists()

    variant = make_variant(store, "student", linear())
    ledger = Ledger(store)
    ledger.commit(ledger.begin("blobs", 7, variant.digest, expected_champion_seq=0))
    done = winnow("pull", "blobs@champion", "-o", str(target), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["version"], told["digest"], told["bytes"]) == (7, variant.digest, target.stat().st_size)
    session = onnxruntime.InferenceSession(target.read_bytes(), providers=["CPUExecutionProvider"])
    inputs = np.ones((2, 4), np.float32)
    assert session.run(None, {"x": inputs})[0] == pytest.approx(inputs @ linear())
    assert "version 7" in winnow("pull", "blobs", "-o", str(target)).stdout
    assert winnow("pull", "blobs@3", "-o", str(target)).returncode == 2

    before = target.read_bytes()
    store.put(store.blob_key(variant.file("model.onnx").sha256), b"something else")
    corrupt = winnow("pull", "blobs", "-o", str(target))
    assert corrupt.returncode == 1 and "quarantine" in corrupt.stderr
    assert target.read_bytes() == before and sorted(p.name for p in home.glob("digits*")) == ["digits.onnx"]


def test_pull_writes_what_a_run_chose(store: Store, home: Path) -> None:
    target = home / "chosen.onnx"
    variant = make_variant(store, "student", linear())
    refused = run_report("refused", run_id="20261122-150455-blobs-cccc", model="blobs", chosen=variant.digest)
    save_run(store, refused)
    save_run(store, run_report("failed", run_id="20261122-160455-blobs-dddd", model="blobs", chosen=None))
    done = winnow("pull", "blobs", "--run", "20261122-15", "-o", str(target), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["digest"], told["version"], told["status"]) == (variant.digest, refused.version, "refused")
    assert target.read_bytes() == store.fetch_bytes(variant.file("model.onnx"))
    target.unlink()
    for arguments, code, reason in (
        (("blobs", "--run", "20261122-16"), 1, "chose nothing"),
        (("digits", "--run", "20261122-15"), 1, "is of the model 'blobs', not of 'digits'"),
        (("blobs", "--run", "nothing-like-it"), 1, "winnow runs"),
        (("blobs@champion", "--run", "20261122-15"), 2, "MODEL with --run"),
    ):
        failed = winnow("pull", *arguments, "-o", str(target))
        assert failed.returncode == code and reason in failed.stderr, failed.stderr
        assert not target.exists()


def test_pull_writes_any_variant_of_a_run(store: Store, home: Path) -> None:
    target = home / "teacher.onnx"
    teacher = make_variant(store, "teacher.fp32", linear())
    report = run_report("released", run_id="20261122-150455-blobs-cccc", model="blobs")
    line = report.variants[0].model_copy(update={"name": teacher.name, "digest": teacher.digest})
    save_run(store, report.model_copy(update={"variants": (line, *report.variants[1:])}))
    done = winnow("pull", "blobs", "--run", "20261122-15", "--variant", "teacher.fp32", "-o", str(target), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["digest"], told["version"], told["variant"]) == (teacher.digest, None, "teacher.fp32")
    assert target.read_bytes() == store.fetch_bytes(teacher.file("model.onnx"))
    target.unlink()
    unknown = winnow("pull", "blobs", "--run", "20261122-15", "--variant", "teacher.fp64", "-o", str(target))
    assert unknown.returncode == 1 and "'teacher.fp64'" in unknown.stderr and "teacher.fp32" in unknown.stderr
    alone = winnow("pull", "blobs", "--variant", "teacher.fp32", "-o", str(target))
    assert alone.returncode == 2 and "--run" in alone.stderr and not target.exists()


def test_without_a_stack_the_remedy_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WINNOW_STORE", raising=False)
    for command in (("runs",), ("show", "x"), ("compare", "x"), ("pull", "x", "-o", str(home / "f"))):
        done = winnow(*command)
        assert done.returncode == 1 and "winnow up" in done.stderr, command


def test_help_shows_an_example_and_lists_are_quick(three_runs: Store) -> None:
    for command in ("runs", "show", "compare", "pull"):
        assert "Example:" in winnow(command, "--help").stdout
    listed = winnow("runs", PYTHONPROFILEIMPORTTIME="1")
    assert listed.returncode == 0
    loaded = {line.rpartition("|")[2].split(".")[0].strip() for line in listed.stderr.splitlines()}
    heavy = {"prefect", "torch", "mlflow", "onnx", "onnxruntime", "pandas", "sklearn", "scipy", "matplotlib", "fastapi"}
    assert "click" in loaded and not loaded & heavy, "what takes a second to import is not needed for a list"
