"""validate: the choice on validation, the gates on the test split, and refusals that say everything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from gate_cases import BASE, ROWS, Case, blob_scores, loss, measure_quickly
from measured_models import linear, make_data, make_variant
from measurements import measured

from model_registry.manifest import FileEntry
from model_registry.measurement import (
    Better,
    ClassLoss,
    LatencyIntervals,
    Measurement,
    MetricEstimate,
)
from model_registry.store import Store
from tasks.evidence.arrays import publish_arrays
from tasks.evidence.class_loss import class_losses
from tasks.evidence.decision import GateRow
from tasks.evidence.flipped import fetch_flips
from tasks.running.errors import GateFailed
from tasks.running.splits import DataRef, MetricRef
from tasks.running.stage import Job, WorkloadRef
from tasks.validate import GateSpec, decision_of, refuse_chance, refuse_hopeless
from tasks.validate.choice import choose, failing_gates, scored
from tasks.validate.gate_rows import gate_rows


def classified(metric: str, better: Better) -> DataRef:
    """Data of a classification that nothing but the metric is asked of."""
    named = MetricRef(name=metric, better=better, builtin=False)
    return DataRef(fingerprint="f", splits=(), columns={}, task="classes", metric=named)


def variant_of(classes: dict[str, ClassLoss]) -> Measurement:
    """One that keeps every gate but perhaps that of its classes."""
    return measured("variant", BASE, paired=loss(0.01), class_losses=classes)


@pytest.fixture
def case(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    return Case(store, tmp_path)


@pytest.mark.timeout(120)
def test_the_good_variant_passes_once_and_is_reused(case: Case) -> None:
    ratio = case.teacher.size / case.good.size
    spec = GateSpec(
        margin=0.02, floor=0.8, max_bytes=10_000, max_p95_ms=5.0, min_speedup=1.5, min_shrink=0.5 + ratio / 2
    )
    outcome = case.run(spec)
    decision = decision_of(outcome)
    assert decision.status == "passed" and decision.chosen == case.good.digest
    assert decision.samples == ROWS and decision.champion is None
    assert "1 of 2 variants pass on validation" in decision.reason
    assert {g.gate: g.passed for g in decision.gates} == {
        "non_inferior_to_baseline": True,
        "floor": True,
        "per_class": True,
        "latency": True,
        "size": True,
        "speedup": True,
        "shrink": True,
    }
    assert {g.gate: g.value for g in decision.gates}["shrink"] == pytest.approx(ratio)
    chosen = next(s for s in decision.scored if s.role == "chosen")
    right = blob_scores(linear(), seed=3)
    assert chosen.metric.value == pytest.approx(right.mean())  # the test split's, not validation's
    assert chosen.to_baseline is not None and chosen.to_baseline.better == chosen.to_baseline.worse == 0
    assert chosen.to_baseline.bound == pytest.approx(1 - 0.05 ** (1 / 300))
    assert decision.flips is not None and outcome.files == (decision.flips,)
    assert case.run(spec).status == "reused"
    # Chosen again as the champion in service: nobody new to be compared with, nothing to do again.
    assert case.run(spec, champion=case.candidates[0]).status == "reused"


@pytest.mark.timeout(120)
def test_a_refusal_names_gates_and_variants_and_is_not_cached(case: Case) -> None:
    champion = case.candidates[0]
    with pytest.raises(GateFailed) as caught:
        case.run(GateSpec(margin=0.5, champion_margin=0.02), candidates=[case.candidates[1]], champion=champion)
    text, decision = str(caught.value), caught.value.details["decision"]
    assert decision["status"] == "refused" and decision["champion"] == case.good.digest
    refused = [g["gate"] for g in decision["gates"] if not g["passed"]]
    assert "non_inferior_to_champion" in refused and "non_inferior_to_baseline" not in refused
    flips = fetch_flips(case.store, FileEntry.model_validate(decision["flips"]))
    paired = next(s for s in decision["scored"] if s["role"] == "chosen")["to_baseline"]
    assert set(flips.rows[~flips.better]) <= set(paired["worse_indices"]) and len(flips.rows) > 5
    assert (flips.chosen.argmax(axis=1)[~flips.better] != flips.targets[~flips.better]).all()
    assert (flips.baseline.argmax(axis=1)[~flips.better] == flips.targets[~flips.better]).all()
    assert list(flips.inputs) == ["x"]
    assert "FAIL  non_inferior_to_champion" in text and "<= 2.00 points" in text
    assert "bad is refused on the test split (300 samples)" in text
    assert "All variants, on validation" in text and "teacher" in text.split("All variants")[1]
    assert not case.store.list_records("stages/") or all(
        b'"validate"' not in (case.store.read_record(k) or b"") for k in case.store.list_records("stages/")
    )


@pytest.mark.timeout(120)
def test_a_candidate_that_is_worse_than_the_champion_is_not_chosen(case: Case) -> None:
    served = make_variant(case.store, "served", linear(), width=96)
    champion = measure_quickly(case.store, served, linear(), case.baseline, p50=1.5)
    decision = decision_of(case.run(GateSpec(margin=0.5, champion_margin=0.02), champion=champion))
    assert decision.chosen == case.good.digest  # the other one is twice as fast, and may lose half to the baseline
    assert "1 of 2 variants pass on validation" in decision.reason
    (scored,) = [s for s in decision.scored if s.role == "chosen"]
    assert scored.to_champion is not None and scored.to_champion.reference == served.digest


def test_a_relative_margin_is_a_share_of_the_metric_of_each_splits_baseline() -> None:
    base = measured("teacher.fp32", right=300)
    value = base.metric.value
    other = measured("small", base, p50=0.5, right=297, flips=(0, 3))
    (row,) = [r for r in _rows(GateSpec(relative_margin=0.05), other, base) if r.gate == "non_inferior_to_baseline"]
    assert row.limit == pytest.approx(0.05 * value)
    better = base.model_copy(update={"metric": base.metric.model_copy(update={"value": value / 2})})
    (row,) = [r for r in _rows(GateSpec(relative_margin=0.05), other, better) if r.gate == "non_inferior_to_baseline"]
    assert row.limit == pytest.approx(0.025 * value)
    found = GateSpec(relative_margin=0.05).resolved(-0.5)
    assert (found.margin, found.relative_margin, found.margin_to_champion) == (0.025, None, 0.025)
    assert found.resolved(9.0) == found and GateSpec(margin=0.1).resolved(9.0).margin == 0.1
    assert GateSpec(relative_margin=0.05).resolved(0.0).margin > 0
    assert GateSpec(relative_margin=0.05).margin_text() == "5 % of the baseline's metric"


def _rows(spec: GateSpec, variant: Measurement, baseline: Measurement) -> tuple[GateRow, ...]:
    sides = scored(variant, role="chosen"), scored(baseline, role="baseline")
    return gate_rows(spec, *sides, variant, baseline_costs=baseline)


def test_nothing_to_choose_from_is_a_refusal(case: Case) -> None:
    with pytest.raises(GateFailed, match="no compressed variant to choose from"):
        case.run(GateSpec(), candidates=[case.baseline])


def test_a_margin_that_can_never_be_proven_is_refused_before_training(case: Case) -> None:
    small = make_data(case.store, test_rows=100)
    with pytest.raises(GateFailed, match="at least 149 samples") as caught:
        refuse_hopeless(GateSpec(margin=0.02), small)
    assert caught.value.details == {"needed": 149, "samples": 100}
    assert "budget.max_accuracy_drop 0.02" in str(caught.value) and "test split of 100" in str(caught.value)
    refuse_hopeless(GateSpec(margin=0.03), small)
    with pytest.raises(GateFailed, match="champion_margin"):
        refuse_hopeless(GateSpec(margin=0.03, champion_margin=0.01), small)
    with pytest.raises(GateFailed, match="validation split of 100"):  # where the choice is made: nobody would pass
        refuse_hopeless(GateSpec(margin=0.02), make_data(case.store, rows=100))
    regression = make_data(case.store, test_rows=5, metric=MetricRef(name="mse", better="lower", builtin=True))
    refuse_hopeless(GateSpec(margin=0.0001), regression)  # no smallest margin is known for such scores


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("accuracy", "higher"),
        ("mse", "lower"),
        ("label_accuracy", "higher"),
        ("jaccard", "higher"),
        ("cosine", "higher"),
    ],
)
def test_a_teacher_that_knows_nothing_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str, better: Literal["higher", "lower"]
) -> None:
    targets = np.repeat([0, 0, 1, 2], 75)  # half of them are of one class; their variance is 0.6875
    if name in ("label_accuracy", "jaccard"):  # every label is on in half of the rows
        targets = np.repeat([[0.0, 1, 1], [1, 0, 0]], 150, axis=0)
    if name == "cosine":  # half of them point one way, the others to both sides
        targets = np.repeat([[2.0, 0], [1, 0], [0, 1], [0, -1]], 75, axis=0)
    file = publish_arrays(store, "validation.npz", target=targets)
    monkeypatch.setattr("tasks.validate.split_inputs", lambda job, data: {"validation": file})
    data = make_data(store, metric=MetricRef(name=name, better=better, builtin=True))
    job = Job(run_id="r", model="m", store=store.uri, workload=WorkloadRef(path="a:B"))

    def teacher(low: float, high: float) -> Measurement:
        metric = MetricEstimate(name=name, better=better, value=(low + high) / 2, interval=(low, high))
        return measured("teacher.fp32").model_copy(update={"metric": metric})

    refuse_chance(job, data, teacher(0.51, 0.6))
    with pytest.raises(GateFailed, match=r"the teacher knows nothing yet: its .* Train the teacher longer"):
        refuse_chance(job, data, teacher(0.45, 0.7))
    unknown = data.model_copy(update={"metric": MetricRef(name="f1", better="higher", builtin=False)})
    refuse_chance(job, unknown, teacher(0.45, 0.7))  # nobody knows what a constant answer is worth


@pytest.mark.slow
def test_missing_numbers_never_pass() -> None:
    rows = [
        GateRow(gate="nan", meaning="m", value=float("nan"), limit=1.0, unit="loss"),
        GateRow(gate="at_most", meaning="m", value=1.0, limit=1.0, unit="loss"),
        GateRow(gate="above", meaning="m", value=1.01, limit=1.0, unit="loss"),
        GateRow(gate="at_least", meaning="m", value=0.9, limit=0.8, unit="loss", at_most=False),
        GateRow(gate="below", meaning="m", value=0.7, limit=0.8, unit="loss", at_most=False, severity="warning"),
    ]
    # In a process of its own, as the stage does it: Great Expectations takes seconds to import, and warns.
    code = (
        "import json, sys\n"
        "from tasks.evidence.decision import GateRow\n"
        "from tasks.validate.expectations_of_gates import run_gates\n"
        "rows = [GateRow(**{**row, 'value': float(row['value'])}) for row in json.load(sys.stdin)]\n"
        "print(json.dumps({r.gate: r.passed for r in run_gates('v', rows)}))"
    )
    asked = json.dumps([row.model_dump() | {"value": str(row.value)} for row in rows])
    done = subprocess.run([sys.executable, "-c", code], input=asked, capture_output=True, text=True, check=True)
    results = json.loads(done.stdout.splitlines()[-1])
    assert results == {"nan": False, "at_most": True, "above": False, "at_least": True, "below": False}
    assert [row.within for row in rows] == list(results.values())


# -- the choice, on numbers alone --------------------------------------------------------------------------------


def test_the_fastest_of_the_harmless_wins() -> None:
    slow, fast = measured("slow", BASE, p50=2.0, bytes=100), measured("fast", BASE, p50=1.0, bytes=900)
    wrong = measured("wrong", BASE, p50=0.1, bytes=10, paired=loss(0.05))
    choice = choose(GateSpec(objective="latency"), [slow, fast, wrong], BASE, {})
    assert choice.chosen.name == "fast" and choice.failing[wrong.digest] == ("non_inferior_to_baseline",)
    assert choice.failing[fast.digest] == ()
    assert choose(GateSpec(objective="size"), [slow, fast, wrong], BASE, {}).chosen.name == "slow"
    assert choose(GateSpec(objective="throughput"), [slow, fast, wrong], BASE, {}).chosen.name == "fast"


def test_unless_the_spec_says_otherwise_latency_and_size_count_alike() -> None:
    small, fast = measured("small", BASE, p50=2.0, bytes=100), measured("fast", BASE, p50=1.0, bytes=210)
    choice = choose(GateSpec(), [small, fast], BASE, {})
    assert choice.chosen.name == "small" and choice.reason.endswith("small is the best at speed and size together")
    assert choose(GateSpec(), [small, measured("fast", BASE, p50=1.0, bytes=190)], BASE, {}).chosen.name == "fast"
    assert [m.name for m in choice.sequence] == ["small"], "one is released, not a front"


def test_one_that_is_slower_than_the_baseline_is_only_warned_of() -> None:
    slower = measured("slower", BASE, p50=8.0, bytes=100)
    assert choose(GateSpec(objective="size"), [slower], BASE, {}).chosen.name == "slower"
    assert failing_gates(GateSpec(), slower, BASE) == ()
    (gate,) = failing_gates(GateSpec(max_bytes=99), slower, BASE)
    assert gate.gate == "size"


def test_ratios_to_the_baseline_are_gates_and_the_sure_part_of_the_speed_up_counts() -> None:
    small, fast = measured("small", BASE, p50=2.0, bytes=200), measured("fast", BASE, p50=1.0, bytes=600)
    assert fast.speedup is not None and fast.speedup.value == 4.0 and fast.speedup.interval[0] == pytest.approx(3.76)
    assert choose(GateSpec(min_shrink=5.0), [small, fast], BASE, {}).chosen.name == "small"  # 1000 over 200 bytes
    choice = choose(GateSpec(min_speedup=3.7, objective="size"), [small, fast], BASE, {})
    assert choice.chosen.name == "fast" and choice.failing[small.digest] == ("speedup",)
    (gate,) = failing_gates(GateSpec(min_speedup=3.9), fast, BASE)
    assert (gate.gate, gate.limit, gate.at_most) == ("speedup", 3.9, False) and gate.value == pytest.approx(3.76)
    (gate,) = failing_gates(GateSpec(min_shrink=1.7), fast, BASE)
    assert (gate.gate, gate.unit) == ("shrink", "ratio") and gate.value == pytest.approx(1000 / 600)
    # What is asked anyway is not warned of as well; the baseline itself is as fast and as large as itself.
    names = {r.gate for r in failing_gates(GateSpec(min_speedup=2.0, min_shrink=2.0), BASE, BASE)}
    assert names == {"speedup", "shrink"}


def test_look_up_tables_are_a_gate_and_what_is_no_circuit_does_not_pass_it() -> None:
    small, large = (measured(f"of {n}", BASE, p50=p, bytes=100, luts=n) for n, p in ((4000, 2.0), (6000, 1.0)))
    assert choose(GateSpec(max_luts=5000), [small, large], BASE, {}).chosen.name == "of 4000"
    (gate,) = failing_gates(GateSpec(max_luts=5000), large, BASE)
    assert (gate.gate, gate.value, gate.unit) == ("fpga", 6000, "LUTs")
    (none,) = failing_gates(GateSpec(max_luts=5000), BASE, BASE)
    assert none.model_dump(mode="json")["value"] is None, "JSON has no NaN"
    again = GateRow.model_validate_json(none.model_dump_json())
    assert again.value != again.value and not again.within
    assert none.gate == "fpga" and none.value != none.value and "no circuit can be made of it" in none.meaning


def test_variants_equally_fast_within_noise_are_told_apart_by_size() -> None:
    first, second = measured("first", BASE, p50=1.00, bytes=900), measured("second", BASE, p50=1.03, bytes=100)
    assert first.latency_share[1][1] > second.latency_share[1][0]
    fastest = GateSpec(objective="latency")
    choice = choose(fastest, [first, second], BASE, {})
    assert choice.chosen.name == "second" and "equally fast within noise" in choice.reason
    # So are two whose intervals overlap, although neither holds the other's median; further away one is the fastest.
    apart, slower = measured("apart", BASE, p50=1.08, bytes=100), measured("slower", BASE, p50=1.13, bytes=100)
    assert first.latency_share[1][1] < apart.latency_share[0]
    assert choose(fastest, [first, apart], BASE, {}).chosen.name == "apart"
    assert choose(fastest, [first, slower], BASE, {}).chosen.name == "first"


def test_speed_is_that_beside_the_baseline_whatever_else_the_machine_did() -> None:
    """The faster one was measured while everything, the baseline too, took twice as long."""
    quiet, busy = measured("quiet", BASE, p50=1.3, bytes=900), measured("busy", BASE, p50=1.0, bytes=900)
    busy = busy.model_copy(update={"p50_ms": 2.0, "latency_interval": LatencyIntervals(p50=(1.9, 2.1), p95=(2.4, 3.0))})
    assert choose(GateSpec(), [quiet, busy], BASE, {}).chosen.name == "busy"


def test_a_limit_of_the_tail_looks_at_the_share_of_the_baseline_in_turns_with_it() -> None:
    """It was measured while everything took three times as long; a limit in milliseconds is about a quiet machine."""
    busy = measured("busy", BASE, p50=1.0)
    busy = busy.model_copy(update={"p95_ms": 3 * BASE.p95_ms, "tail_share": 0.5})
    spec = GateSpec(max_p95_ms=0.6 * BASE.p95_ms)
    (row,) = [row for row in _rows(spec, busy, BASE) if row.gate == "latency"]
    assert row.value == pytest.approx(0.5 * BASE.p95_ms) and row.within
    assert choose(spec, [busy], BASE, {}).failing[busy.digest] == ()
    (row,) = [row for row in _rows(spec, BASE, BASE) if row.gate == "latency"]
    assert row.value == BASE.p95_ms and not row.within


def test_limits_and_the_champion_take_part_in_the_choice() -> None:
    fast, small = measured("fast", BASE, p50=1.0, bytes=900), measured("small", BASE, p50=3.0, bytes=100)
    assert choose(GateSpec(max_bytes=500), [fast, small], BASE, {}).chosen.name == "small"
    assert choose(GateSpec(max_p95_ms=2.0), [fast, small], BASE, {}).chosen.name == "fast"
    tail = measured("tail", BASE, p50=1.6, bytes=100)  # its median is within
    assert choose(GateSpec(max_p95_ms=2.0), [fast, tail], BASE, {}).failing[tail.digest] == ("latency",)
    champion = {fast.digest: loss(0.5, "c" * 64), small.digest: loss(0.001, "c" * 64)}
    choice = choose(GateSpec(), [fast, small], BASE, champion)
    assert choice.chosen.name == "small" and choice.failing[fast.digest] == ("non_inferior_to_champion",)


def test_where_nobody_passes_the_nearest_goes_to_the_gates_or_the_baseline_is_kept() -> None:
    near, far = measured("near", BASE, paired=loss(0.03)), measured("far", BASE, paired=loss(0.3), p50=0.1)
    choice = choose(GateSpec(), [far, near], BASE, {})
    assert choice.chosen.name == "near" and "no variant passes on validation" in choice.reason
    kept = choose(GateSpec(allow_baseline=True), [far, near], BASE, {})
    assert kept.chosen is BASE and "allow_baseline" in kept.reason


def test_a_class_that_is_lost_is_refused_although_the_mean_holds() -> None:
    common = ClassLoss(samples=500, loss=0.0, shown=-0.02)
    lost = variant_of({"common": common, "rare": ClassLoss(samples=30, loss=0.4, shown=0.2)})
    assert choose(GateSpec(), [lost], BASE, {}).failing[lost.digest] == ("per_class",)
    assert choose(GateSpec(per_class_margin=None), [lost], BASE, {}).failing[lost.digest] == ()
    unlucky = variant_of({"common": common, "rare": ClassLoss(samples=30, loss=0.2, shown=0.03)})
    assert choose(GateSpec(), [unlucky], BASE, {}).failing[unlucky.digest] == (), "that may be chance"


def test_classes_too_small_to_show_any_loss_are_reported() -> None:
    classes = {"common": ClassLoss(samples=500, loss=0.0, shown=-0.02), "rare": ClassLoss(samples=3, loss=1.0, shown=0)}
    small = variant_of(classes)
    rows = gate_rows(
        GateSpec(), scored(small, role="chosen"), scored(BASE, role="baseline"), small, baseline_costs=BASE
    )
    warning = next(row for row in rows if row.gate == "class_size")
    assert (warning.severity, warning.within, warning.value) == ("warning", False, 3)
    assert "class rare, the smallest of 1" in warning.meaning
    assert choose(GateSpec(), [small], BASE, {}).failing[small.digest] == ()


@pytest.mark.parametrize(("sizes", "differ"), [([10] * 100, 0.04), ([200] * 5 + [8] * 15, 0.04), ([54] * 10, 0.02)])
def test_a_variant_as_good_as_its_baseline_is_rarely_refused_for_a_class(sizes: list[int], differ: float) -> None:
    """And one that loses most of a class is, where the class is large enough to show it."""
    rng, targets = np.random.default_rng(0), np.repeat(np.arange(len(sizes)), sizes)
    data = classified("accuracy", "higher")

    def worst(lost: int | None) -> float:
        reference = (rng.random(len(targets)) < 0.9).astype(np.float64)
        flipped = rng.random(len(targets)) < differ
        scores = np.where(flipped, rng.integers(0, 2, len(targets)), reference).astype(np.float64)
        if lost is not None:
            scores[(targets == lost) & (rng.random(len(targets)) < 0.6)] = 0.0
        return max(loss.shown for loss in class_losses(data, scores, reference, targets).values())

    assert sum(worst(None) > 0.1 for _ in range(200)) <= 2
    if max(sizes) >= 50:
        assert sum(worst(0) > 0.1 for _ in range(50)) >= 35


def test_lower_is_better_turns_floor_and_class_losses() -> None:
    error = MetricEstimate(name="mse", better="lower", value=0.5, interval=(0.4, 0.6))
    base = measured("teacher", metric=error)
    variant = measured("student", base, metric=error)
    assert choose(GateSpec(floor=0.6), [variant], base, {}).failing[variant.digest] == ()
    assert choose(GateSpec(floor=0.4), [variant], base, {}).failing[variant.digest] == ("floor",)

    reference = np.full(200, 0.5) + np.random.default_rng(0).normal(0, 0.01, 200)
    for rare, shown in ((0.9, True), (0.1, False)):
        scores, targets = np.full(200, rare), np.zeros(200, dtype=np.int64)
        lost = class_losses(classified("mse", "lower"), scores, reference, targets)["0"]
        assert (lost.shown > 0.1) is shown and lost.loss == pytest.approx(rare - 0.5, abs=0.01)
