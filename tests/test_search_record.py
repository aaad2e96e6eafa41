"""What is remembered of a search: when it answers, when it goes on, and its candidates under another budget."""

from __future__ import annotations

import pytest
from searches import search_report

from flows.searching.budget_spec import SearchSpec
from flows.searching.candidate_rows import judged
from flows.searching.search_record import SearchRecord, recall, remember
from model_registry.store import Store
from model_registry.variant import Variant
from tasks.running.stage import Outcome
from tasks.validate.gate_spec import GateSpec


def record(*measured: Outcome, limited: bool = False) -> SearchRecord:
    """A search of ten minutes and five trainings."""
    summary = search_report().search
    assert summary is not None
    summary = summary.model_copy(update={"limited": limited})
    return SearchRecord(key="k", run_id="r", steps=(), measured=measured, summary=summary, minutes=10.0, trials=5)


def test_one_that_ended_at_a_limit_goes_on_when_that_is_raised() -> None:
    limited = record(limited=True)
    assert limited.may_go_on(SearchSpec(minutes=11.0, trials=5))
    assert limited.may_go_on(SearchSpec(minutes=10.0, trials=6))
    assert not limited.may_go_on(SearchSpec(minutes=10.0, trials=5))
    assert not limited.may_go_on(SearchSpec(minutes=1.0, trials=1))
    assert not record().may_go_on(SearchSpec(minutes=11.0, trials=6))  # there was nothing left to train


@pytest.mark.parametrize("gone", ["model.onnx", "scores.npz"])
def test_it_answers_while_all_files_of_what_it_measured_are_there(store: Store, gone: str) -> None:
    model, scores = store.publish_bytes(b"model", "model.onnx"), store.publish_bytes(b"scores", "scores.npz")
    variant = Variant(name="v", stage="export", format="onnx", files=(model,), inputs=(), outputs=())
    measured = Outcome(
        stage="measure", name="measure:v", status="computed", seconds=1.0, key="m", version="1",
        variants=(variant,), files=(scores,),
    )  # fmt: skip
    assert recall(store, "k") is None
    remember(store, record(measured))
    assert recall(store, "k") == record(measured)
    store.delete(store.blob_key({"model.onnx": model, "scores.npz": scores}[gone].sha256))
    assert recall(store, "k") is None


def test_a_record_of_another_version_is_none(store: Store) -> None:
    store.write_record("searches/k.json", b'{"schema": 1, "of": "another version"}')
    assert recall(store, "k") is None


def test_a_candidate_at_its_limit_is_within() -> None:
    summary = search_report().search
    assert summary is not None
    row = next(r for r in summary.candidates if r.losses and r.kind == "pruned")
    form = min(row.forms, key=lambda f: f.bytes)
    assert form.speedup_low and form.shrink
    at = GateSpec(
        margin=form.bound,
        max_bytes=form.bytes,
        max_p95_ms=form.p95_ms,
        min_speedup=form.speedup_low,
        min_shrink=form.shrink,
    )
    (found,) = judged(row.model_copy(update={"forms": (form,)}), at).forms
    assert found.fails == ()


@pytest.mark.parametrize(
    ("change", "gate"),
    [
        ({"margin": 0.9}, "non_inferior_to_baseline"),
        ({"max_bytes": 0.9}, "size"),
        ({"max_p95_ms": 0.9}, "latency"),
        ({"min_speedup": 1.1}, "speedup"),
        ({"min_shrink": 1.1}, "shrink"),
        ({"max_luts": 0.9}, "fpga"),
    ],
)
def test_beyond_any_limit_it_fails_that_gate(change: dict[str, float], gate: str) -> None:
    summary = search_report().search
    assert summary is not None
    row = next(r for r in summary.candidates if r.losses and r.kind == "pruned")
    form = min(row.forms, key=lambda f: f.bytes)
    assert form.speedup_low and form.shrink and form.bound is not None
    limits = {"margin": form.bound, "max_bytes": form.bytes, "max_p95_ms": form.p95_ms}
    limits |= {"min_speedup": form.speedup_low, "min_shrink": form.shrink, "max_luts": 1000}
    form = form.model_copy(update={"luts": 1000})
    whole = ("max_bytes", "max_luts")
    lower = {name: int(limits[name] * by) if name in whole else limits[name] * by for name, by in change.items()}
    (found,) = judged(row.model_copy(update={"forms": (form,)}), GateSpec.model_validate(limits | lower)).forms
    assert found.fails == (gate,)
