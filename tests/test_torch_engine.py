"""Trainings that torch's DDP and FSDP2 share out: as one process but for rounding, on any number of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from patience import PATIENCE
from safetensors.torch import load_file
from torch import Tensor

from model_registry.store import StoreUnavailable
from tasks.running.errors import SpecError
from tasks.running.ranks import Ranks
from tasks.running.stage import Job, Parallel, WorkloadRef
from tasks.running.stage_call import StageCall
from tasks.torch_models.fit_checkpoint import CheckpointUnreadable
from tasks.torch_models.split_checkpoint import load_split, save_split
from tasks.torch_models.split_tensor import SplitTensor, rows_of
from tasks.torch_models.torch_engine import check_engine, settled_engine
from tasks.train import TRAIN, TrainSpec

if TYPE_CHECKING:
    from engine_script import CASES, COUNT, ENGINES, Blocks, Files, taught_by
else:  # tests/ is no package at run time
    from engine_script import CASES, COUNT, ENGINES, Blocks, Files, taught_by

HERE = Path(__file__).parent
SHARED = (2, COUNT)
BY_CHANCE = ("dropout", "unused")
"""What one process has differs: each rank draws for its rows, and ``unused`` decides by the batch that it sees."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each of 1, 2 and 3 processes wrote what it had."""
    folder = tmp_path_factory.mktemp("engines")
    running = [
        subprocess.Popen(
            [sys.executable, str(HERE / "engine_script.py"), str(number), str(folder)],
            env={**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE}"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(COUNT)
    ]
    try:
        errors = [process.communicate(timeout=PATIENCE)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * COUNT, "\n".join(errors)
    return folder


def of(found: Path, case: str, engine: str, count: int, number: int = 0) -> tuple[dict[str, Tensor], dict[str, Any]]:
    name = f"{case}-{engine}-{count}-{number}"
    return load_file(found / f"{name}.safetensors"), json.loads((found / f"{name}.json").read_text())


def curves(facts: dict[str, Any]) -> list[float]:
    return [row[name] for row in facts["history"] for name in ("train_loss", "val_loss")]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", [*CASES, "resumed"])
def test_processes_learn_what_one_learns(case: str, engine: str, found: Path) -> None:
    """``resumed``: two were killed after an epoch, and 1, 2 and 3 went on."""
    alone, facts = of(found, "blocks" if case == "resumed" else case, engine, 1)
    for count in SHARED:
        for number in range(count):
            weights, shared = of(found, case, engine, count, number)
            assert shared["resumed_at"] == (case == "resumed") and shared["class"] == facts["class"]
            assert curves(shared) == pytest.approx(curves(facts), abs=0.05 if case in BY_CHANCE else 1e-6)
            for name, value in alone.items():
                torch.testing.assert_close(weights[name], value, atol=0.1 if case in BY_CHANCE else 1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_all_ranks_have_the_same_bits_and_have_them_again(engine: str, found: Path) -> None:
    for count in SHARED:
        for case in (*CASES, "resumed"):
            first, told = of(found, case, engine, count)
            for number in range(1, count):
                weights, facts = of(found, case, engine, count, number)
                assert facts == told and all(torch.equal(weights[name], value) for name, value in first.items()), case
        once, again = of(found, "dropout", engine, count), of(found, "twice", engine, count)
        assert once[1] == again[1] and all(torch.equal(again[0][name], value) for name, value in once[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_one_process_goes_on_from_two(engine: str, found: Path) -> None:
    weights, facts = of(found, "resumed", engine, 1)
    alone, straight = of(found, "blocks", engine, 1)
    assert facts["resumed_at"] == 1 and curves(facts) == pytest.approx(curves(straight), abs=1e-6)
    for name, value in alone.items():
        torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_weights_that_nobody_uses_and_constants_keep_their_bits(engine: str, found: Path) -> None:
    torch.manual_seed(0)
    before = Blocks().state_dict()
    for count in (1, *SHARED):
        weights, _ = of(found, "blocks", engine, count)
        assert torch.equal(weights["never.weight"], before["never.weight"]), "no weight decay either"
        assert torch.equal(weights["inwards.weight"], weights["outwards.weight"])
        assert not torch.equal(weights["gain"], before["gain"])
        half, _ = of(found, "unused", engine, count)
        assert torch.equal(half["constant"], torch.full((3,), 1 / 3)) and half["seen"] == 18


@pytest.mark.slow
def test_what_cannot_be_shared_out_is_refused_before_training(found: Path) -> None:
    said = (found / "refused-ddp-3-1.txt").read_text()
    assert said.startswith("3 processes with exact: false: the smallest batch has 2 rows, and each process needs one")
    assert "engine fsdp: Kept has no save_part() and load_part()" in (found / "refused-fsdp-2-0.txt").read_text()


def test_one_process_needs_no_engine() -> None:
    plain, engine = taught_by("plain", None), taught_by("plain", "ddp")
    assert plain[1].history == engine[1].history
    assert all(torch.equal(value, engine[0].state_dict()[name]) for name, value in plain[0].state_dict().items())


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"exact": False, "processes": 2, "shards": 8}, "shards 8 with exact: false"),
        ({"exact": False}, "processes auto with exact: false"),
        ({"exact": False, "processes": 0}, "processes 0: a training needs at least 1"),
        ({"engine": "ddp"}, "engine ddp is for exact: false"),
        ({"shards": 1}, "shards 1 leaves nothing to share"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Parallel(**fields)


def test_a_model_must_be_worth_splitting() -> None:
    model = torch.nn.Linear(10, 10)
    with pytest.raises(SpecError, match=r"engine fsdp: Linear has 110 parameters.*use engine: ddp"):
        check_engine("fsdp", model, ranks=Ranks(0, 2), rows=100, steps=2, amp="auto")
    large = torch.nn.Linear(8000, 8000, device="meta")
    with pytest.raises(SpecError, match="use amp: bf16"):
        check_engine("fsdp", large, ranks=Ranks(0, 2), rows=100, steps=2, amp="fp16")
    assert [settled_engine("auto", m) for m in (model, large)] == ["ddp", "fsdp"]
    assert settled_engine("fsdp", model) == "fsdp"


def test_the_key_has_the_engine_and_the_number_of_processes() -> None:
    def ingredients(**fields: Any) -> dict[str, Any]:
        parallel = Parallel(**fields) if fields else None
        workload = WorkloadRef(path="taught_workloads:Blobs")
        job = Job(run_id="r", model="m", store="s3://x", workload=workload, parallel=parallel)
        assert Job.model_validate(job.model_dump(mode="json")) == job
        return StageCall(TRAIN, job, TrainSpec()).ingredients

    plain = ingredients()
    assert "shards" not in plain and "parallel" not in plain
    # As it was before there were engines: what was made then is found again.
    assert ingredients(shards=8, processes=2) == ingredients(shards=8) == {**plain, "shards": 8}
    two = ingredients(exact=False, processes=2)
    assert two == {**plain, "parallel": {"engine": "auto", "processes": 2}}
    others = (ingredients(exact=False, processes=3), ingredients(exact=False, processes=2, engine="ddp"))
    assert two not in others and others[0] != others[1]


def test_rows_are_found_whoever_saved_them() -> None:
    rows = torch.arange(14).view(7, 2)
    for count in (1, 2, 3, 8):
        parts = [{"w": rows[slice(*rows_of(rank, count, 7))]} for rank in range(count)]
        split = SplitTensor("w", (7, 2), parts)
        for others in (1, 2, 5, 8):
            for rank in range(others):
                assert torch.equal(split.rows(*rows_of(rank, others, 7)), rows[slice(*rows_of(rank, others, 7))])


def test_a_damaged_part_is_no_checkpoint(tmp_path: Path) -> None:
    files = Files(tmp_path)
    save_split({"n": 1}, files, 1, last=True, ranks=Ranks(), turn="a")
    names = {"names": ["a-1-of-1"], "digests": ["0" * 64]}
    with pytest.raises(CheckpointUnreadable, match="part a-1-of-1 of the checkpoint is gone or damaged"):
        load_split({"parts": names, "state": {}}, files)


def test_a_part_that_cannot_be_kept_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    class Full(Files):
        def save_part(self, name: str, data: bytes) -> None:
            raise StoreUnavailable("no room")

    with pytest.raises(StoreUnavailable, match="no room"):
        save_split({"n": 1}, Full(tmp_path), 1, last=True, ranks=Ranks(), turn="a")
    assert not list(tmp_path.iterdir())
