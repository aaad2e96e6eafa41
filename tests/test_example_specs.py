"""Every shipped spec runs in its smallest form, after what its first lines say."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunningStack
from forked_runs import Forks
from winnow_command import Winnow

import winnow
from flows.spec import SPECS

HEADERS = {
    path.stem: [line[1:] for line in path.read_text().split("\nschema:")[0].splitlines()]
    for path in sorted(SPECS.glob("*.yaml"))
}
QUICK = ("measure.rounds=5", "measure.seconds=0.1", "gates.per_class_margin=null", "gates.floor=null")
WIDE = "budget.max_accuracy_drop=0.9"  # so little training proves nothing
SMALL_DIGITS = "workload.arguments.rows=600"
TRAIN = ("train.epochs=2",)
DISTILL = ("distill.epochs=2", "distill.control=false")
PRUNE = ("prune.epochs=1", "prune.batchnorm_batches=5")
SHORT = (*TRAIN, *DISTILL, *PRUNE)
STATIC = "quantize.methods=[static]"


@dataclass(frozen=True)
class Example:
    """How to make a spec small, and what its run must have made."""

    overrides: tuple[str, ...]
    variants: frozenset[str]
    metric: str = "accuracy"


CHAIN = frozenset({"teacher.fp32", "student.fp32", "pruned.fp32", "pruned.int8-static"})
EXAMPLES = {
    "tabular": Example((*SHORT, WIDE, STATIC), CHAIN),
    "images": Example((*SHORT, WIDE, STATIC, "workload.arguments.source=shapes/pictures"), CHAIN),
    "bring": Example((*DISTILL, *PRUNE, WIDE, SMALL_DIGITS, STATIC, "teacher.weights=digits.pt"), CHAIN),
    "bring_onnx": Example(
        (WIDE, SMALL_DIGITS, "teacher.weights=digits.onnx", "quantize.methods=[static,symmetric,dynamic,weights8]"),
        frozenset(
            {"teacher", *(f"teacher.{form}" for form in ("int8-static", "int8-symmetric", "int8-dynamic", "weights8"))}
        ),
    ),
    "digits_budget": Example(
        (
            *("train.epochs=3", "distill.epochs=2", WIDE, SMALL_DIGITS),
            *("search.shrink=[]", "search.students=[{network: strided}]", "search.rungs=1", "search.control=false"),
        ),
        frozenset({"teacher.fp32", "student1-r1.fp32", "student1-r1.weights8"}),
    ),
    "qat": Example(
        (*TRAIN, *PRUNE, WIDE, SMALL_DIGITS, "qat.epochs=1"), frozenset({"pruned.int8-static", "pruned.int8-qat"})
    ),
    "two_inputs": Example((*SHORT, WIDE, "workload.arguments.share=0.1"), CHAIN),
    "regression": Example((*SHORT, "budget.max_accuracy_drop=9"), CHAIN, "nmse"),
    "several_labels": Example((*SHORT, WIDE, SMALL_DIGITS), CHAIN, "label_accuracy"),
    "targets": Example(
        (*TRAIN, *DISTILL, WIDE, SMALL_DIGITS, "targets=[xla,halves]"),
        frozenset({"teacher.fp32", "student.int8-static"}),
    ),
    "sequence": Example(
        (*TRAIN, *DISTILL, WIDE, "workload.arguments.share=0.1"),
        frozenset({"teacher.fp32", "student.fp32", "student.int8-dynamic"}),
    ),
}


def test_every_shipped_spec_is_run_by_a_test() -> None:
    assert set(HEADERS) - set(EXAMPLES) == {"digits", "tiny", "text", "smol"}
    # tests/test_chain.py runs digits made small, and tiny; test_text_chain.py and test_causal_chain.py the other two


@pytest.mark.parametrize("name", HEADERS)
def test_specs_open_with_their_command_cost_and_result(name: str) -> None:
    lines = HEADERS[name]
    assert lines[0].startswith(f" winnow run {name}")
    text = " ".join(line.strip() for line in lines)
    assert re.search(r"Cost: [^.]*\d+ (seconds|minutes)", text) or re.search(r"Cost: [^.]*(a minute|minutes)", text)
    assert name == "tiny" or re.search(r"Expect .*\d", text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


def prepared(name: str) -> list[str]:
    """The indented lines of a spec's first comment: what makes its weights."""
    return [line.removeprefix("     ") for line in HEADERS[name] if line.startswith("     ")]


def run(stack: RunningStack, forks: Forks, folder: Path, name: str) -> dict[str, Any]:
    example = EXAMPLES[name]
    made = [o.replace("weights=", f"weights={folder}/") for o in example.overrides]
    overrides = [part for override in (*QUICK, *made) for part in ("--set", override)]
    return Winnow(folder, stack.home, forks).report(name, "--no-deploy", *overrides)


@pytest.mark.parametrize("name", [n for n in EXAMPLES if n not in {"images", "bring", "bring_onnx", "sequence"}])
def test_the_example_runs(name: str, stack: RunningStack, forks: Forks, folder: Path) -> None:
    checked(run(stack, forks, folder, name), name)


def test_what_init_writes_runs(stack: RunningStack, forks: Forks, folder: Path) -> None:
    command = Winnow(folder, stack.home, forks)
    assert command("init", "machines").returncode == 0
    small = [part for o in (*QUICK, *SHORT, WIDE, STATIC) for part in ("--set", o)]
    report = command.report("machines/spec.yaml", "--no-deploy", *small)
    assert report["model"] == "machines" and report["status"] == "registered"
    assert {row["name"] for row in report["variants"]} >= CHAIN


def test_pictures_that_init_drew(stack: RunningStack, forks: Forks, folder: Path) -> None:
    assert Winnow(folder, stack.home, forks)("init", "shapes", "--kind", "images").returncode == 0
    report = run(stack, forks, folder, "images")
    checked(report, "images")


def test_weights_of_a_few_lines_of_torch(stack: RunningStack, forks: Forks, folder: Path) -> None:
    script = "\n".join(prepared("bring"))
    assert script.count("range(60)") == 1
    subprocess.run([sys.executable, "-c", script.replace("range(60)", "range(3)")], cwd=folder, check=True)
    checked(run(stack, forks, folder, "bring"), "bring")


def test_an_onnx_file_that_winnow_pulled(stack: RunningStack, forks: Forks, folder: Path) -> None:
    command = Winnow(folder, stack.home, forks)
    first, second = (
        shlex.split(line)[1:] for line in "\n".join(prepared("bring_onnx")).replace("\\\n", "").split("\n")
    )
    small = [part for o in (*QUICK, SMALL_DIGITS, WIDE, *TRAIN) for part in ("--set", o)]
    assert command(*first, *small).returncode == 0
    assert command(*second).returncode == 0
    checked(run(stack, forks, folder, "bring_onnx"), "bring_onnx")


def test_a_sequence_model_takes_any_length(stack: RunningStack, forks: Forks, folder: Path) -> None:
    report = run(stack, forks, folder, "sequence")
    checked(report, "sequence")
    pulled = Winnow(folder, stack.home, forks)(
        "pull", report["model"], "--run", report["run_id"], "-o", "sequence.onnx"
    )
    assert pulled.returncode == 0, pulled.stderr
    model = winnow.load(folder / "sequence.onnx")
    for length in (3, 24, 50):
        (scores,) = model.predict(np.zeros(length, dtype=np.int64)).values()
        assert np.shape(scores) == (4,)


def checked(report: dict[str, Any], name: str) -> None:
    """The run made what the example is about, and registered something that is not the baseline."""
    names = {row["name"] for row in report["variants"]}
    assert names >= EXAMPLES[name].variants, names
    assert report["status"] == "registered"
    assert report["chosen"] not in (None, report["baseline"])
    assert report["metric"]["name"] == EXAMPLES[name].metric
    assert [form["state"] for form in report["targets"]] == ["proven"] * len(report["targets"])
    assert (name == "targets") == bool(report["targets"])
