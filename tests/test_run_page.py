"""What MLflow's pages show: the same names everywhere, readable notes, curves that fit."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from measurements import measured

from model_registry.manifest import FileEntry
from model_registry.measurement import MetricEstimate
from model_registry.run_page import (
    VariantRun,
    curves,
    metric_name,
    metrics,
    params,
    run_note,
    tags,
    variant_note,
    view,
)
from model_registry.variant import Variant


def row(name: str, **fields: object) -> VariantRun:
    variant = Variant(
        name=name,
        stage="quantize",
        format="onnx",
        files=(FileEntry(path="model.onnx", sha256="a" * 64, size=1),),
        inputs=(),
        outputs=(),
    )
    return VariantRun.model_validate({"variant": variant, **fields})


def test_a_metric_of_the_users_own_stands_beside_accuracy() -> None:
    own = MetricEstimate(name="f1 (macro)", better="higher", value=0.5, interval=(0.4, 0.6))
    assert metric_name("f1 (macro)") == "f1 _macro_"
    found = metrics(measured("v", metric=own))
    assert (found["f1 _macro_"], found["d_f1 _macro_"], found["accuracy"]) == (0.5, 0.0, 0.97222)
    regression = metrics(measured("v", metric=own.model_copy(update={"name": "mse"}), accuracy=None, macs=None))
    assert "accuracy" not in regression and "macs" not in regression and regression["mse"] == 0.5


def test_a_metric_that_a_workload_calls_accuracy_is_the_workloads() -> None:
    own = MetricEstimate(name="accuracy", better="higher", value=0.75, interval=(0.7, 0.8))
    assert metrics(measured("v", metric=own, accuracy=0.5))["accuracy"] == 0.75


def test_the_note_of_a_run_is_a_table_with_links() -> None:
    teacher = measured("teacher")
    rows = [
        row("teacher", measurement=teacher, pareto=True),
        row("int8", measurement=measured("int8", teacher, p50=0.25, flips=(1, 2)), chosen=True, pareto=True),
        row("unmeasured"),
    ]
    text = run_note(rows, "released", [("report", "http://x/report"), ("nothing", "")])
    lines = text.splitlines()
    assert lines[0] == "### released"
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1  # every row has every column
    assert "teacher ◆" in table[2] and "**int8** (chosen)" in table[3] and "4.00x" in table[3]
    assert "AMD EPYC 7763" in text and "1 thread(s), batch 1" in text
    assert "[report](http://x/report)" in text and "nothing" not in text
    remarks = ["int8 did not pass: speed-up.\nNothing was registered.", *(f"Left out: {n}." for n in range(20))]
    bullets = [line for line in run_note(rows, "refused", [], remarks).splitlines() if line.startswith("- ")]
    assert bullets[0] == "- int8 did not pass: speed-up. Nothing was registered."
    assert bullets[-1] == "- and 9 more in the report" and len(bullets) == 13


def test_the_note_of_a_variant_says_who_flipped() -> None:
    text = variant_note(row("int8", measurement=measured("int8", measured("teacher"), flips=(1, 2))))
    assert "on the same 360 samples: 1 better, 2 worse" in text and "mcnemar p = 1" in text
    assert "Not measured by itself" in variant_note(row("torch"))


def test_tags_and_params() -> None:
    made = row("v", parents=("a", "b"), params={"ratio": "0.5"}, method="")
    assert tags(made, "r1")["winnow.parent"] == "a b" and tags(made, "r1")["winnow.pareto"] == "false"
    assert params(made) == {"stage": "quantize", "method": "quantize", "ratio": "0.5"}


@given(st.integers(0, 5000), st.integers(2, 300))
def test_long_curves_are_thinned_and_keep_their_end(lines: int, limit: int) -> None:
    history = b"".join(json.dumps({"epoch": i, "loss": float(i), "flag": True}).encode() + b"\n" for i in range(lines))
    points = list(curves(history, limit))
    assert len(points) <= limit + 1
    assert {name for name, _, _ in points} <= {"curve/loss"}
    if lines:
        assert points[0] == ("curve/loss", 0, 0.0) and points[-1] == ("curve/loss", lines - 1, float(lines - 1))


def test_the_saved_view_shows_what_the_variants_have() -> None:
    saved = json.loads(view("f1 (macro)", 5))
    assert (saved["name"], saved["createdAt"], saved["updatedAt"]) == ("Variants", 5, 5)
    state = json.loads(saved["state"])  # a string within: MLflow's page reads it so
    own = MetricEstimate(name="f1 (macro)", better="higher", value=1 / 3, interval=(0.3, 0.4))
    there = metrics(measured("v", metric=own))
    columns = [c.removeprefix("metrics.`").removesuffix("`") for c in state["selectedColumns"] if "metrics" in c]
    assert columns[:2] == ["f1 _macro_", "d_f1 _macro_"] and set(columns) <= there.keys()
    for card in state["compareRunCharts"]:
        keys = [card["metricKey"]] if card["type"] == "BAR" else [card["xaxis"]["key"], card["yaxis"]["key"]]
        assert set(keys) <= there.keys()
    assert len(view("f1 (macro)", 5)) < 5000  # what an experiment tag may hold
    assert there["f1 _macro_"] == 0.33333  # as many digits as a table column shows


def test_curves_of_nothing() -> None:
    assert list(curves(b"")) == list(curves(b"\n\n")) == []
