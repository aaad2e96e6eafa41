"""A budget in, the proven best variant out: the search on real servers, answered again from its store, and killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import RunningStack
from forked_runs import Forks
from patience import wait_for
from winnow_command import Winnow, stage_lines

SPEC: dict[str, Any] = {
    "schema": 1,
    "workload": {"path": "tasks.workloads.digits:Digits", "arguments": {"rows": 900}},
    "train": {"epochs": 8, "batch_size": 32},
    "budget": {"max_accuracy_drop": 0.2},
    "objective": "size",
    "search": {
        "minutes": 5,
        "trials": 5,
        "shrink": [0.4, 0.15],
        "students": [{"width": 0.25}, {"width": -1.0}],
        "rungs": 2,
        "control": True,
    },
    "distill": {"epochs": 8, "batch_size": 32},
    "quantize": {"methods": ["static"], "calibration_samples": 32},
    "qat": {"epochs": 1},
    "measure": {"rounds": 5, "seconds": 0.1},
    "gates": {"per_class_margin": None},
}
TRAINED = ("train", "distill", "prune", "quantize", "qat", "sensitivity", "latency_table", "measure")


@pytest.fixture
def winnow(stack: RunningStack, forks: Forks, tmp_path: Path) -> Winnow:
    return Winnow(tmp_path, stack.home, forks)


def spec(folder: Path, model: str, **changes: Any) -> str:
    path = folder / f"{model}.yaml"
    path.write_text(yaml.safe_dump({**SPEC, "model": model, **changes}))
    return str(path)


def computed(report: dict[str, Any], *stages: str) -> list[str]:
    return [name for name, status in stage_lines(report).items() if status == "computed" and name.startswith(stages)]


def test_a_search_ends_with_the_smallest_variant_inside_the_budget(winnow: Winnow) -> None:
    path = spec(winnow.folder, "searched")
    first = winnow.report(path)
    assert first["status"] == "released"
    search = first["search"]
    candidates = {c["name"]: c for c in search["candidates"]}
    assert set(candidates) == {"teacher", "pruned40", "pruned15", "student1", "student2"}
    assert all(c["reason"] for c in candidates.values())
    assert candidates["student2"]["state"] == "failed"  # it alone: a network of negative width
    assert 0 < search["trials"] <= 5
    assert stage_lines(first)["ask"] == "computed"  # before anybody learns
    variants = {v["digest"]: v for v in first["variants"]}
    assert first["chosen"] == search["best"]
    passing = [f for c in candidates.values() for f in c["forms"] if not f["fails"] and f["digest"] in variants]
    passing = [f for f in passing if f["digest"] != first["baseline"]]
    assert min(passing, key=lambda f: f["bytes"])["digest"] == first["chosen"]
    assert variants[first["chosen"]]["bytes"] < variants[first["baseline"]]["bytes"] / 10
    assert search["sensitivity"]
    assert "gain" in search["control"]
    assert not any(v["name"].startswith("control") and v["digest"] == first["chosen"] for v in first["variants"])

    # Another budget is a question to the same measurements.
    limit = variants[first["chosen"]]["bytes"] + 1
    again = winnow.report(path, "--set", f"budget.max_bytes={limit}", "--set", "budget.min_shrink=10")
    assert (again["status"], again["chosen"]) == ("released", first["chosen"])
    assert again["search"]["resolved_from"] == first["run_id"]
    assert computed(again, *TRAINED) == []
    assert next(g for g in again["decision"]["gates"] if g["gate"] == "shrink")["value"] > 10

    # So is the front: all that no other beats are proven in one sequence and become one set of versions.
    front = winnow.report(path, "--set", "objective=front")
    assert front["status"] == "released" and set(front["decision"]["front"]) == set(front["front"])
    assert len(front["front"]) > 1 and front["front"][front["chosen"]] == front["version"]
    assert {f["digest"] for f in passing} >= set(front["front"])
    assert any("this test split has served" in warning for warning in front["warnings"])
    assert computed(front, *TRAINED) == []

    # One that nothing can keep is refused with a reason for everybody, and nobody is trained for it.
    refused = winnow.report(path, "--set", "budget.max_bytes=100", code=1)
    assert refused["status"] == "refused"
    reasons = {c["name"]: (c["state"], c["reason"]) for c in refused["search"]["candidates"]}
    assert {state for state, _ in reasons.values()} == {"over the budget", "failed"}
    assert "> 100 bytes" in reasons["pruned15"][1]
    assert computed(refused, *TRAINED) == []
    assert (winnow.home / "runs" / refused["run_id"] / "report" / "report.html").exists()


def test_a_search_finds_what_fits_an_fpga(winnow: Winnow) -> None:
    students = [{"network": "strided", "width": width} for width in (0.5, 0.25)]  # some 50 000 and 19 000 LUTs
    search = {"minutes": 5, "trials": 3, "shrink": [], "students": students, "rungs": 1}
    budget = {"max_accuracy_drop": 0.3, "max_luts": 30_000}
    changes = {"search": search, "budget": budget, "quantize": {"calibration_samples": 32}, "qat": None}
    changes["distill"] = {"epochs": 60, "batch_size": 32}
    report = winnow.report(spec(winnow.folder, "for-a-board", **changes))
    assert report["status"] == "released"
    candidates = {c["name"]: c for c in report["search"]["candidates"]}
    assert candidates["student1"]["state"] == "over the budget" and not candidates["student1"]["losses"]
    assert (
        "LUTs > 30000 LUTs" in candidates["student1"]["reason"] and candidates["teacher"]["state"] == "over the budget"
    )
    chosen = next(f for f in candidates["student2"]["forms"] if f["digest"] == report["chosen"])
    assert chosen["name"].endswith("int8-static") and 3_000 < chosen["luts"] <= 30_000
    gate = next(g for g in report["decision"]["gates"] if g["gate"] == "fpga")
    assert gate["passed"] and gate["value"] == chosen["luts"]


def test_a_killed_search_goes_on_where_it_was(winnow: Winnow) -> None:
    search = {**SPEC["search"], "students": [], "control": False, "parallel": 2}
    path = spec(winnow.folder, "stopped", seed=5, search=search, objective="front")
    folders = winnow.home / "runs"
    folders.mkdir(exist_ok=True)
    before = set(folders.iterdir())
    process = winnow.start_run(path)

    def trained_once() -> bool:
        return any(any(f.glob("distill-*-r1.log")) for f in set(folders.iterdir()) - before)

    wait_for(lambda: trained_once() or process.poll() is not None, what="the first training", every=0.05)
    process.kill()
    process.communicate()
    report = winnow.report(path, "--set", "search.trials=1")
    assert computed(report, "train", "prune", "sensitivity", "latency_table") == []
    assert report["search"]["trials"] == 1

    # What ended at a limit goes on where the limit is higher, though something keeps the budget already.
    more = winnow.report(path, "--set", "search.trials=2")
    assert more["search"]["resolved_from"] is None
    assert more["search"]["trials"] == 2
    assert computed(more, "distill")
    assert computed(more, "train", "sensitivity", "latency_table") == []


def test_the_parts_of_a_search_also_work_alone(winnow: Winnow) -> None:
    """Without a search, each is a section of the spec like any other."""
    settings = {
        "distill": {
            "epochs": 4,
            "batch_size": 32,
            "hints": {"layers": "auto", "weight": 0.5},
            "temperature": "auto",
            "teachers": 2,
        },
        "prune": {"ratios": {"conv1": 0.5, "dense": 0.75}, "epochs": 2, "batch_size": 32},
        "quantize": {
            "methods": ["static", "weights8"],
            "calibration_samples": 32,
            "equalize": True,
            "bias_correction": True,
            "accuracy_control": {"max_drop": 0.3},
        },
        "qat": {"epochs": 1},
        "gates": {"margin": 0.6, "per_class_margin": None, "allow_baseline": True},
    }
    parts = {key: value for key, value in SPEC.items() if key not in ("budget", "objective", "search")} | settings
    path = winnow.folder / "parts.yaml"
    path.write_text(yaml.safe_dump({**parts, "model": "parts"}))
    report = winnow.report(str(path), "--no-deploy")
    assert report["status"] == "registered"
    assert report["search"] is None
    names = {variant["name"] for variant in report["variants"]}
    assert {"student.fp32", "pruned.int8-static", "pruned.weights8", "pruned.int8-qat"} <= names
    stages = stage_lines(report)
    assert {"train:seed-1", "qat:pruned", "distill", "prune"} <= set(stages)
    assert set(stages.values()) <= {"computed", "reused"}


RESIDUAL = '''
from tasks.workloads.resnet import ResNet20
from tasks.workloads.digits import Digits


class ResidualDigits(Digits):
    """Digits for a residual network, which can be had shallower."""

    def model(self, role, width=0.5, depth=1.0):
        return ResNet20(shape=(1, 8, 8), classes=10, width=width, depth=depth)
'''


def test_a_shallower_student_begins_with_the_teachers_layers_and_is_narrowed_too(winnow: Winnow) -> None:
    (winnow.folder / "residual_digits.py").write_text(RESIDUAL)
    workload = {"path": "residual_digits:ResidualDigits", "arguments": {"rows": 900}}
    search = {"minutes": 5, "trials": 1, "shrink": [0.15], "students": [{"depth": 0.34}] * 2, "rungs": 1}
    changes = {"distill": {**SPEC["distill"], "alpha": 0.5}, "budget": {"max_accuracy_drop": 0.2}}
    path = spec(winnow.folder, "shallow", workload=workload, search=search, **changes)
    report = winnow.report(path)
    rows = {row["name"]: row for row in report["search"]["candidates"]}
    assert {"teacher", "pruned15", "student1", "student1-pruned15"} <= set(rows) and "student2" not in rows
    assert "student depth 0.34: the same network as student1" in report["search"]["untried"]
    narrowed = rows["student1-pruned15"]
    assert narrowed["what"] == "student depth 0.34 pruned to 15% of the teacher's size"
    assert narrowed["settings"]["scale"] == {"depth": 0.34} and narrowed["settings"]["ratios"]
    # What is not trained need not be made.
    size = {n: min([form["bytes"] for form in row["forms"]] or [row["planned_bytes"]]) for n, row in rows.items()}
    assert size["student1-pruned15"] > 0
    assert size["student1-pruned15"] < size["student1"] < size["teacher"]
    assert not [row for row in rows.values() if row["state"] == "failed"]


FLAT = '''
import torch
from torch import nn
from tasks.workloads.digits import Digits


class FlatDigits(Digits):
    """Digits for a single layer: there is nothing to narrow or to leave out."""

    def model(self, role):
        return Flat()


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, image):
        return self.layer(image.flatten(1))
'''


def test_what_cannot_be_narrowed_is_only_quantized(winnow: Winnow) -> None:
    (winnow.folder / "flat_digits.py").write_text(FLAT)
    workload = {"path": "flat_digits:FlatDigits", "arguments": {"rows": 900}}
    report = winnow.report(spec(winnow.folder, "flat", workload=workload, search={"minutes": 1}), "--no-deploy")
    assert report["status"] == "registered"
    search = report["search"]
    assert [row["name"] for row in search["candidates"]] == ["teacher"] and search["trials"] == 0
    assert {text.partition(":")[0] for text in search["untried"]} == {
        "narrower ones of the teacher",
        "the teacher at half its resolution",
        "the teacher with a third of its blocks",
    }


def test_trainings_that_diverge_leave_what_needs_none(winnow: Winnow) -> None:
    search = {"minutes": 5, "shrink": [0.3], "students": []}
    changes = {"search": search, "distill": {**SPEC["distill"], "learning_rate": 1e17}}
    report = winnow.report(spec(winnow.folder, "diverging", **changes), "--no-deploy")
    assert report["status"] == "registered"
    rows = {row["name"]: row for row in report["search"]["candidates"]}
    assert rows["pruned30"]["state"] == "failed" and "TrainingDiverged" in rows["pruned30"]["reason"]
    assert report["search"]["trials"] == 3, "labels alone and two shares of the teacher"
    assert report["chosen"] == report["search"]["best"]


def test_a_teacher_at_chance_level_is_refused_before_anything_is_searched(winnow: Winnow) -> None:
    path = spec(winnow.folder, "chance", train={"epochs": 1, "learning_rate": 1e-9}, search={"minutes": 5})
    report = winnow.report(path, "--no-deploy", code=1)
    assert report["status"] == "refused" and "the teacher knows nothing yet" in report["error"]["message"]
    tried_before = {
        "quantize:untrained"
    }  # whether anything is wrong with the stages at all, if no test has asked before
    assert set(computed(report, "sensitivity", "quantize", "distill")) <= tried_before


def test_a_plan_says_what_a_search_will_try(winnow: Winnow) -> None:
    search = {"minutes": 7, "trials": 11}
    planned = winnow("run", spec(winnow.folder, "foretold", search=search, distill=None), "--plan", "--json")
    lines = json.loads(planned.stdout)["stages"]
    told = {line["name"]: line["reason"] for line in lines if line["name"].startswith("search:")}
    assert set(told) == {"search:teacher", "search:planning", "search:training", "search:choice"}
    assert "at most 11 trainings in 7 min" in told["search:training"]
    assert "half the resolution" in told["search:planning"]
