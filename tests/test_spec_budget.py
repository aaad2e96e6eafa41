"""A budget in a spec: what it means to the gates, and budgets that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.commands.command_init import spec_schema
from flows.spec import PipelineSpec, load_spec, parse_spec
from tasks.running.errors import SpecError

SMALL: dict[str, Any] = {"schema": 1, "model": "m", "workload": {"path": "mine_workload:Mine"}}


def parsed(**sections: Any) -> PipelineSpec:
    return parse_spec({**SMALL, **sections}, "spec.yaml")


def test_a_budget_is_gates_and_conditions_of_measuring() -> None:
    budget = {"max_accuracy_drop": 0.005, "p95_ms": 2.0, "max_bytes": 100_000, "batch": 4, "threads": 2}
    spec = parsed(budget=budget, objective="size")
    assert (spec.gates.margin, spec.gates.max_p95_ms, spec.gates.max_bytes) == (0.005, 2.0, 100_000)
    assert (spec.gates.objective, spec.measure.batch, spec.export.threads) == ("size", 4, 2)
    assert parse_spec(spec.model_dump(mode="json", by_alias=True), "again") == spec


def test_ratios_to_the_baseline_are_gates() -> None:
    spec = parsed(budget={"min_speedup": 2, "min_shrink": 4.5})
    assert (spec.gates.min_speedup, spec.gates.min_shrink) == (2.0, 4.5)
    assert parsed(budget={"p95_ms": 2.0}).gates.min_speedup is None
    assert parse_spec(spec.model_dump(mode="json", by_alias=True), "again") == spec


def test_look_up_tables_are_counted_of_files_that_can_become_circuits() -> None:
    spec = parsed(budget={"max_luts": 5000}, search={})
    assert (spec.gates.max_luts, spec.measure.luts_below) == (5000, 8192) and spec.quantize is not None
    assert parsed(gates={"max_luts": 70_000}).measure.luts_below == 65_536, (
        "who says it to the gate wants it counted too"
    )
    assert (spec.quantize.methods, spec.quantize.scales) == (("static",), "power_of_two")
    assert parse_spec(spec.model_dump(mode="json", by_alias=True), "again") == spec
    with pytest.raises(SpecError, match=r"budget.max_luts 5000 needs quantize.scales 'power_of_two', and it is 'any'"):
        parsed(budget={"max_luts": 5000}, quantize={"scales": "any"})
    with pytest.raises(SpecError, match="qat contradict each other"):
        parsed(budget={"max_luts": 5000}, qat={})
    with pytest.raises(SpecError, match=r"budget.max_luts: -1 is refused"):
        parsed(budget={"max_luts": -1})


def test_a_part_that_is_not_said_leaves_the_gates_default() -> None:
    spec = parsed(budget={"p95_ms": 2.0}, gates={"margin": 0.01})
    assert (spec.gates.margin, spec.gates.max_bytes, spec.objective) == (0.01, None, "both")
    assert parsed(gates={"objective": "size"}).objective == "size"


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"budget": {"max_accuracy_drop": -0.01}}, "budget.max_accuracy_drop: -0.01 is refused"),
        ({"budget": {"p95_ms": 0}}, "budget.p95_ms: 0 is refused"),
        ({"budget": {"max_bytes": "many"}}, "budget.max_bytes: 'many' is refused"),
        (
            {"budget": {"min_speedup": 1}},
            "budget.min_speedup: 1 is refused: the baseline already meets it; give a number above 1, such as 2, or",
        ),
        ({"budget": {"min_shrink": -3.0}}, "budget.min_shrink: -3.0 is refused: the baseline already meets it"),
        (
            {"budget": {"min_shrink": float("inf")}},
            "budget.min_shrink: inf is refused: numbers must be finite",
        ),
        ({"budget": {"min_speedup": "fast"}}, "budget.min_speedup: 'fast' is refused: Input should be a valid number"),
        (
            {"budget": {"min_shrink": 3.0}, "gates": {"min_shrink": 2.0}},
            "budget.min_shrink 3.0 and gates.min_shrink 2.0 are the same limit and differ; remove one",
        ),
        ({"budget": {"threads": 0}}, "budget.threads: 0 is refused"),
        ({"budget": {"latency": 3}}, "budget.latency: unknown key"),
        ({"objective": "cheap"}, "objective: 'cheap' is refused"),
        ({"search": {"trials": 0}}, "search.trials: 0 is refused"),
        ({"search": {"shrink": [1.5]}}, "search.shrink.0: 1.5 is refused"),
        (
            {"budget": {"threads": 2}, "teacher": {"weights": "mine.onnx"}},
            "2 threads are asked for, and the ONNX file 'mine.onnx' is run with one",
        ),
        (
            {"distill": {"teachers": 2}, "teacher": {"weights": "mine.safetensors"}},
            "distill.teachers 2 are trained from as many seeds, and the teacher is brought",
        ),
        (
            {"budget": {"p95_ms": 2.0}, "gates": {"max_p95_ms": 3.0}},
            "budget.p95_ms 2.0 and gates.max_p95_ms 3.0 are the same limit and differ; remove one",
        ),
        (
            {"objective": "latency", "gates": {"objective": "size"}},
            "objective 'latency' and gates.objective 'size' are the same limit and differ",
        ),
        (
            {"budget": {"max_accuracy_drop": 0.01}, "gates": {"margin": 0.02}},
            "budget.max_accuracy_drop 0.01 and gates.margin 0.02",
        ),
        (
            {"budget": {"max_accuracy_drop": 0.01, "max_relative_drop": 0.02}},
            "budget.max_accuracy_drop 0.01 and budget.max_relative_drop 0.02 both limit the loss",
        ),
        (
            {"budget": {"max_relative_drop": 0.02}, "gates": {"margin": 0.1}},
            "gates.margin 0.1 and budget.max_relative_drop 0.02 both limit the loss",
        ),
        ({"budget": {"max_relative_drop": 1.0}}, "budget.max_relative_drop: 1.0 is refused"),
    ],
)
def test_budgets_that_cannot_be_are_refused(sections: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as refused:
        parsed(**sections)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("sections", "lines"),
    [
        ({"budget": {"p95_ms": 0}}, ["budget.p95_ms: 0 is refused: Input should be greater than 0"]),
        (
            {"budget": {"min_speedup": 0.5}},
            [
                "budget.min_speedup: 0.5 is refused: the baseline already meets it; give a number above 1, such "
                "as 2, or remove the key"
            ],
        ),
        ({"gates": {"max_p95_ms": 0}}, ["gates.max_p95_ms: 0 is refused: Input should be greater than 0"]),
        (
            {"objective": "cheap"},
            ["objective: 'cheap' is refused: Input should be 'both', 'latency', 'size', 'throughput' or 'front'"],
        ),
    ],
)
def test_a_wrong_value_is_reported_once_as_it_was_written(sections: dict[str, Any], lines: list[str]) -> None:
    with pytest.raises(SpecError) as refused:
        parsed(**sections)
    assert [line.strip() for line in str(refused.value).splitlines()[1:]] == lines


def test_a_key_has_one_name_in_the_documents_and_the_older_one_still_loads() -> None:
    old = parsed(
        gates={"margin": 0.01, "max_p95_ms": 2.0, "max_bytes": 9, "objective": "size"},
        measure={"batch": 4},
        export={"threads": 2},
    )
    budget = {"max_accuracy_drop": 0.01, "p95_ms": 2.0, "max_bytes": 9, "batch": 4, "threads": 2}
    new = parsed(budget=budget, objective="size")
    assert (old.gates, old.measure, old.export) == (new.gates, new.measure, new.export)
    schema = json.dumps(spec_schema()["$defs"]["GateSpec"]["properties"]["margin"])
    assert '"deprecated": true' in schema and "budget.max_accuracy_drop" in schema


def test_an_override_of_the_budget_reaches_the_gates(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "budget": {"p95_ms": 2.0}}))
    assert load_spec(path, ["budget.p95_ms=0.5"]).gates.max_p95_ms == 0.5


def test_a_limit_on_the_slowest_requests_is_measured_on_enough_of_them() -> None:
    assert parsed().measure.requests == 100
    for said in ({"budget": {"p95_ms": 2.0}}, {"gates": {"max_p95_ms": 2.0}}):
        assert parsed(**said).measure.requests == 200
        assert parsed(**said, measure={"requests": 50}).measure.requests == 50
