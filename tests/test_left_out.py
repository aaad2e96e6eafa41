"""Every method that was skipped, and every layer that a tool left alone, is told with its reason."""

from __future__ import annotations

from typing import Any

from tasks.report.left_out import omitted
from tasks.running.stage import Outcome


def outcome(name: str, **values: Any) -> Outcome:
    return Outcome(
        stage=name.partition(":")[0], name=name, status="computed", seconds=1.0, key="k", version="v", values=values
    )


def test_one_sentence_for_each_reason_with_all_the_models_it_holds_for() -> None:
    why = "ONNX Runtime cannot run bf16 on CPUs."
    made = [
        outcome("train"),
        outcome("quantize:teacher", skipped={"bf16": why, "dynamic": "no MatMul or Gemm"}),
        outcome("quantize:student", skipped={"bf16": why}),
    ]
    assert omitted(made) == (
        "Left out: bf16 of teacher, student: ONNX Runtime cannot run bf16 on CPUs.",
        "Left out: dynamic of teacher: no MatMul or Gemm.",
    )


def test_layers_that_pruning_and_accuracy_control_left_alone() -> None:
    control = {"static": {"fp32_groups": ["conv1", "head"]}, "dynamic": {"fp32_groups": []}}
    made = [
        outcome(
            "prune", left_alone={"read": "its states are read outside", "gate": "it has 3 parts"}, untraced=["side"]
        ),
        outcome("quantize:teacher", skipped={}, accuracy_control=control),
    ]
    assert omitted(made) == (
        "Left out: pruning of some layers of pruned: side: autograd from the answer does not reach them.",
        "Left out: pruning of some layers of pruned: read: its states are read outside.",
        "Left out: pruning of some layers of pruned: gate: it has 3 parts.",
        "Left out: static quantization of some layers of teacher: accuracy control kept conv1, head in fp32.",
    )


def test_a_long_search_names_a_few() -> None:
    (text,) = omitted(outcome(f"quantize:c{n}", skipped={"fp16": "no"}) for n in range(40))
    assert text == "Left out: fp16 of c0, c1, c2, c3, c4, c5 and 34 more: no."
