"""Trainings that processes share: the same bits on any number of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from patience import PATIENCE
from torch import nn

from tasks.running.errors import SpecError
from tasks.running.ranks import Ranks
from tasks.torch_models.fit import fit
from tasks.torch_models.micro_shards import BinaryTree, MicroShards, check_shards
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData

if TYPE_CHECKING:
    from rank_script import CASES, Half, digest, trained
    from taught_workloads import taught
else:  # tests/ is no package at run time
    from rank_script import CASES, Half, digest, trained
    from taught_workloads import taught

HERE = Path(__file__).parent
COUNT = 4
CHANGED = (
    *("dropout, resumed", "batchnorm, two threads", "batchnorm, mapped", "blocks, pipelined", "blocks, resumed"),
    *("objective, pipelined", "dropout, pipelined"),
)
"""The last two cannot be computed block by block, and are shared out as ever."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, str]]]:
    """What was trained by 1, 2 and 4 processes, by rank."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(HERE / "rank_script.py")]
    running = [
        subprocess.Popen(
            [*command, str(number), str(COUNT), str(folder)],
            env={**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE}"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(COUNT)
    ]
    errors = [process.communicate(timeout=PATIENCE)[1] for process in running]
    assert [process.returncode for process in running] == [0] * COUNT, "\n".join(errors)
    return {
        count: [json.loads((folder / f"found-{count}-{number}.json").read_text()) for number in range(count)]
        for count in (1, 2, COUNT)
    }


@pytest.mark.slow
@pytest.mark.parametrize("case", [*CASES, *CHANGED, "answers"])
def test_the_bits_do_not_depend_on_the_number_of_processes(case: str, found: dict[int, list[dict[str, str]]]) -> None:
    digests = {ranked[case] for ranks in found.values() for ranked in ranks}
    assert len(digests) == 1
    straight, _, changed = case.partition(",")
    assert not changed or digests == {found[1][0][straight]}


@pytest.mark.slow
def test_ranks_that_differ_are_refused_before_they_train(found: dict[int, list[dict[str, str]]]) -> None:
    for count in (2, COUNT):
        for ranked in found[count]:
            assert "differ in the training's settings, the weights they begin with: processes" in ranked["disagreed"]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["batchnorm", "unused"])
def test_a_process_of_another_past_has_the_same_bits(case: str, found: dict[int, list[dict[str, str]]]) -> None:
    torch.rand(5)
    assert digest(*trained(case)) == found[1][0][case]


def test_shards_learn_as_a_whole_batch_does() -> None:
    """Without BatchNorm and randomness the gradient is the same but for rounding; a shard counts by its rows."""
    layer, index = nn.Linear(3, 2), torch.arange(13)
    inputs = torch.randn(13, 3, generator=torch.Generator().manual_seed(0))

    def loss_of(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        answers: torch.Tensor = layer(inputs[rows])
        return answers.square().mean()

    loss_of(index, torch.Generator()).backward()  # type: ignore[no-untyped-call]
    whole = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
    shards = MicroShards([layer], list(layer.parameters()), shards=4, ranks=Ranks(), seed=0)
    loss = shards.gradients(1, 0, index, loss_of, lambda value: value)
    assert loss == pytest.approx(loss_of(index, torch.Generator()).item(), rel=1e-6)
    for parameter, wanted in zip(layer.parameters(), whole, strict=True):
        assert parameter.grad is not None and torch.allclose(parameter.grad, wanted, atol=1e-7)


def test_buffers_move_once_and_constants_not_at_all() -> None:
    norm, model = nn.BatchNorm1d(3), Half()
    rows = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)) + 5
    shards = MicroShards([norm, model], list(norm.parameters()), shards=4, ranks=Ranks(), seed=0)
    shards.gradients(1, 0, torch.arange(16), lambda index, generator: norm(rows[index]).sum(), lambda value: value)
    means = torch.stack([rows[part].mean(0) for part in torch.split(torch.arange(16), 4)]).mean(0)
    assert torch.allclose(norm.running_mean, 0.1 * means, rtol=1e-5)  # type: ignore[arg-type]
    assert norm.num_batches_tracked == 1
    assert torch.equal(model.state_dict()["constant"], torch.full((3,), 1 / 3))


def test_a_parameter_that_no_shard_uses_is_left_alone() -> None:
    model, _ = trained("unused")
    torch.manual_seed(0)
    before, after = Half().state_dict(), model.state_dict()
    assert torch.equal(after["never.weight"], before["never.weight"]), "no weight decay either"
    assert not torch.equal(after["one.weight"], before["one.weight"])


def test_leaves_are_added_in_one_tree() -> None:
    tree = BinaryTree()
    for text in (1e8, 1.0, -1e8, 1.0):
        tree.add([torch.tensor(text)])
    first, last = torch.tensor(1e8) + 1.0, torch.tensor(-1e8) + 1.0
    assert tree.total()[0] == first + last


@pytest.mark.parametrize(
    ("shards", "ranks", "rows", "says"),
    [
        (8, 3, 1000, "3 processes cannot share 8 shards"),
        (2, 4, 1000, "4 processes cannot share 2 shards"),
        (8, 2, 15, "the smallest batch has 15 rows, and a shard needs 2; use at most 4"),
        (2, 1, 3, "use no shards, or larger batches"),
    ],
)
def test_what_cannot_be_shared_is_refused(shards: int, ranks: int, rows: int, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        check_shards(shards, Ranks(0, ranks), rows=rows, steps=1)


def test_more_shards_than_a_batch_has_rows_end_before_training() -> None:
    workload = taught("Blobs")
    splits = workload.splits()
    data = TrainingData(workload, splits["train"], splits["validation"])
    settings = Training(epochs=1, batch_size=20, learning_rate=0.1, shards=16)
    with pytest.raises(SpecError, match=r"parallel\.shards 16: the smallest batch has 20 rows"):
        fit(workload.model("teacher"), data, settings, device="cpu")
