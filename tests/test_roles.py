"""What a variant is to its stage goes by digest: names are labels, and a result that is reused has another run's."""

from __future__ import annotations

import ast
import types
from dataclasses import replace
from pathlib import Path

import pytest
from measurements import measured
from search_pieces import BASELINE, clocked, outcome, setup
from searches import search_report
from test_architecture import FILES, parsed, relative

from flows.lineage import Made, MadeStep
from flows.searching.appraisal import Appraisal
from flows.searching.candidate import Candidate
from flows.searching.form_maker import FormMaker
from flows.searching.ladder_planner import LadderPlanner
from flows.searching.search_record import SearchRecord, StoredStep
from flows.searching.tally import Tally
from flows.searching.training_plan import TrainingPlan
from model_registry.form_name import form_name, name_parts
from model_registry.manifest import FileEntry
from model_registry.variant import Variant
from tasks.quantize import QuantizeSpec, quantize
from tasks.report.plot_points import family_of
from tasks.running import stage_cache
from tasks.running.stage import Job, Outcome, WorkloadRef
from tasks.running.stage_plan import Plan, planning

ARTIFACTS = Path(__file__).parent / "artifacts"


def onnx_variant(name: str, content: str) -> Variant:
    file = FileEntry(path="model.onnx", sha256=content * 64, size=1)
    return Variant(name=name, stage="quantize", format="onnx", files=(file,), inputs=(), outputs=())


def quantized(**methods: str) -> Outcome:
    """An outcome of quantize, by method the content of its file; all of them have misleading names."""
    variants = {method: onnx_variant("control.int8-static", content) for method, content in methods.items()}
    roles = {method: variant.digest for method, variant in variants.items()}
    return outcome("quantize").model_copy(update={"variants": tuple(variants.values()), "roles": roles})


def workshop(*candidates: Candidate) -> FormMaker:
    tally = Tally([], outcome("teacher").variant, outcome("teacher"))
    tally.candidates = list(candidates)
    methods = QuantizeSpec(methods=("static", "dynamic", "weights8", "weights4"))
    asked = setup()
    asked = replace(asked, spec=asked.spec.model_copy(update={"quantize": methods}))
    return FormMaker(asked, tally, Appraisal(asked, BASELINE, TrainingPlan(asked)))


def test_a_role_finds_its_variant_whatever_its_name() -> None:
    made = quantized(dynamic="1", static="2")
    found = made.by_role("static")
    assert found is not None and found.digest == onnx_variant("x", "2").digest
    assert made.by_role("weights8") is None and outcome("train").by_role("static") is None


def test_a_plan_knows_the_roles_of_what_will_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = types.SimpleNamespace(read_record=lambda key: None, get=lambda key: None)
    monkeypatch.setattr(stage_cache, "Store", lambda uri: empty)
    monkeypatch.setattr("tasks.quantize.split_inputs", lambda job, data: {})
    job = Job(run_id="r", model="m", store="s3://s", workload=WorkloadRef(path="tasks.workloads.digits:Digits"))
    token = planning.set(Plan())
    try:
        spec = QuantizeSpec(methods=("dynamic", "static"))
        planned = quantize.task.fn(job, spec, data=setup().data, parent=onnx_variant("a.b.fp32", "1"))
    finally:
        planning.reset(token)
    static = planned.by_role("static")
    assert static is not None and static.name == "a.b.int8-static"


def test_the_methods_that_paid_for_the_teacher_are_known_by_digest() -> None:
    made = quantized(static="1", dynamic="2", weights8="3", weights4="4")
    teacher = Candidate("teacher", "teacher", "", {}, 3)
    teacher.note_methods(made)
    cheap = {"static": False, "dynamic": False, "weights8": False, "weights4": True}
    teacher.forms = (
        BASELINE,
        *(
            measured("teacher.fp32", BASELINE, p50=0.1 if pays else 0.5, digest=made.roles[method], flips=(0, 0))
            for method, pays in cheap.items()
        ),
    )
    assert workshop(teacher)._methods_that_may_pay().methods == ("static", "weights8", "weights4")


def test_what_stays_though_it_is_beaten_is_known_by_its_method() -> None:
    made = quantized(static="1", weights8="2", dynamic="3")
    candidate = Candidate("c", "pruned", "", {}, 3)
    candidate.note_methods(made)
    candidate.clocked = tuple(
        clocked("same", p50, size).model_copy(update={"digest": made.roles[method]})
        for method, p50, size in (("static", 0.1, 10_000), ("weights8", 0.3, 30_000), ("dynamic", 0.2, 20_000))
    )
    kept = workshop()._undominated(candidate, always=("weights8",))
    assert {c.digest for c in kept} == {made.roles["static"], made.roles["weights8"]}


def test_a_file_that_is_faster_stays_although_a_smaller_one_is_better_at_both_together() -> None:
    """A budget may limit the latency, whatever the objective."""
    made = quantized(static="1", weights8="2")
    candidate = Candidate("c", "pruned", "", {}, 3)
    candidate.note_methods(made)
    candidate.clocked = tuple(
        clocked("c", p50, size).model_copy(update={"digest": made.roles[method]})
        for method, p50, size in (("static", 0.3, 18_000), ("weights8", 0.4, 10_000))
    )
    shop = workshop()
    both = replace(shop.setup, spec=shop.setup.spec.model_copy(update={"objective": "both"}))
    shop = replace(shop, setup=both, appraisal=replace(shop.appraisal, setup=both))
    assert shop.appraisal.cost(candidate.clocked[1]) < shop.appraisal.cost(candidate.clocked[0])
    assert len(shop._undominated(candidate, always=())) == 2


def test_candidates_have_names_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    shop = workshop(Candidate("teacher", "teacher", "", {}, 3, row_seconds=0.5))
    planner = LadderPlanner(shop.setup, shop.tally, shop.appraisal)
    rung = {"form": "int8", "ratios": {}, "predicted_damage": 0.1, "cost": 0.1, "predicted_bytes": 4, "time": 0.2}
    rung |= {"latency_share": 0.1}
    shares = (0.011, 0.012, 0.0124, 0.2)
    monkeypatch.setattr(planner, "_ladder", lambda base: [rung | {"share": share} for share in shares])
    planner.plan(None)
    _, *narrower = shop.tally.candidates
    assert [c.name for c in narrower] == ["pruned01", "pruned01x2", "pruned01x3", "pruned20"]
    assert {c.row_seconds for c in narrower} == {0.1}, "as much less time to train as to answer"


def test_controls_of_stored_searches_are_known_by_what_the_search_asked_for() -> None:
    stored = SearchRecord.from_json((ARTIFACTS / "0.1.0" / "search.json").read_bytes())
    made = stored.made(outcome("data"), setup().data)
    assert {made.variants[digest].name for digest in made.controls} == {
        "control-student1-r1",
        "control-student1-r1.fp32",
    }
    step = outcome("distill:student1-r1").model_copy(
        update={"stage": "distill", "variants": (onnx_variant("control-pruned40-r1", "1"),)}
    )  # another search's control has the same weights, and was computed first
    assert StoredStep(outcome=step, parents=()).made().controls == ()


def test_the_training_curves_of_what_two_ways_lead_to_are_found() -> None:
    history = FileEntry(path="student.history.jsonl", sha256="3" * 64, size=1)
    first = outcome("distill").model_copy(update={"variants": (onnx_variant("student", "1"),), "files": (history,)})
    later = outcome("prune").model_copy(update={"variants": (onnx_variant("pruned", "1"),)})
    made = Made(outcome("data"), setup().data, (MadeStep(first), MadeStep(later)), ())
    assert made._history(first.variants[0].digest) == history


def test_families_of_a_plot_are_known_by_digest() -> None:
    report = search_report()
    families = [family_of(row, report) for row in report.variants]
    renamed = [family_of(row.model_copy(update={"name": "control-pruned25.fp32"}), report) for row in report.variants]
    assert renamed == families and {"teacher", "pruned", "student", "control"} <= set(families)


def test_a_name_is_a_label_and_a_form() -> None:
    for form in ("static", "symmetric", "dynamic", "qat", "weights8", "weights4", "fp16", "fp32"):
        assert name_parts(form_name("width0.5", form))[0] == "width0.5"
    assert form_name("student", "static") == "student.int8-static"
    assert name_parts("width0.5") == ("width0.5", "") and name_parts(".fp32") == (".fp32", "")


def test_no_name_is_compared_with_that_of_a_form() -> None:
    """What forms are called stands in one file, where names are made."""
    wrong = []
    for path in FILES:
        documents = {
            node.value
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or node in documents:
                continue
            if "int8-" in node.value or node.value in (".weights8", ".weights4", ".fp32", ".fp16"):
                wrong.append(f"{relative(path)}:{node.lineno} {node.value!r}")
    assert [line for line in wrong if not line.startswith("model_registry/form_name.py")] == []
