"""Allocate as stages: what is measured is cached apart from what is asked, and prune takes the answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from digits_world import DigitsWorld, digits_world

from model_registry.store import Store
from tasks.allocate import AllocateSpec, allocate
from tasks.prune import PruneSpec, prune
from tasks.running.journal import Journal, journal
from tasks.running.launch import kept_processes
from tasks.running.stage_plan import Plan, planning


@pytest.fixture
def world(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DigitsWorld]:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    with kept_processes():
        yield digits_world(store, epochs=4)


def test_a_ladder_is_made_kept_and_pruned(store: Store, world: DigitsWorld) -> None:
    job, data, teacher = world.job, world.data, world.teacher
    spec = AllocateSpec(rows=64, removals=(0.5,), seconds=1.0, targets=(0.6, 0.3), objective="size")
    first = allocate.task.fn(job, spec, data=data, parent=teacher, label="int8")
    notes = Journal()
    token = journal.set(notes)
    try:
        again = allocate.task.fn(
            job, spec.model_copy(update={"targets": (0.5,)}), data=data, parent=teacher, label="int8"
        )
    finally:
        journal.reset(token)
    assert [(line.name, line.status) for line in notes.lines] == [
        ("sensitivity:int8", "reused"), ("latency_table:int8", "reused"), ("allocate:int8", "computed"),
    ]  # fmt: skip
    assert [group["name"] for group in first.values["groups"]] == ["conv1", "conv2", "dense"]
    ladder = first.values["ladder"]
    assert [(rung["target"], rung["reached"]) for rung in ladder] == [(0.6, True), (0.3, True)]
    whole = first.values["parent"]["bytes"]
    assert all(rung["predicted_bytes"] <= rung["target"] * whole for rung in ladder)
    assert ladder[0]["predicted_damage"] <= ladder[1]["predicted_damage"]
    assert len(again.values["ladder"]) == 1 and again.status == "computed"

    rung = ladder[1]
    made = prune.task.fn(
        job,
        PruneSpec(ratios=rung["ratios"], epochs=0),
        data=data,
        parent=teacher,
        teacher=teacher,
        label="rung-2",
    )
    assert {name: after for name, (_, after) in made.values["layers"].items()} == {**rung["keep"], "head": 10}


def test_a_plan_names_all_three_stages(store: Store, world: DigitsWorld) -> None:
    plan = Plan()
    token = planning.set(plan)
    try:
        outcome = allocate(world.job, AllocateSpec(), data=world.data, parent=world.teacher)
    finally:
        planning.reset(token)
    assert [line.name for line in plan.lines] == ["sensitivity", "latency_table", "allocate"]
    assert outcome.values == {} and outcome.variants == ()
