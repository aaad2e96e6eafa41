"""Pruning with fine-tuning on real digits: reproducible, led by gradients where asked, better for the tuning."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tasks.prune.channel_cut import Cut
from tasks.prune.loss_gradients import mean_squared_gradients
from tasks.prune.narrow import Narrowed, narrow
from tasks.running.stage import WorkloadRef
from tasks.torch_models.fit_rows import Rows
from tasks.torch_models.objective import Hard
from tasks.torch_models.torch_variant import build
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData
from tasks.workloads.workload import load_workload

pytestmark = pytest.mark.slow  # trains or exports real networks

WORKLOAD = load_workload(WorkloadRef(path="tasks.workloads.digits:Digits", arguments={"rows": 500}))


@pytest.fixture(scope="module")
def untrained() -> nn.Module:
    return build(WORKLOAD, "teacher", {"width": 0.25})


def narrowed(model: nn.Module, **changes: Any) -> tuple[nn.Module, Narrowed, list[float]]:
    model = copy.deepcopy(model)
    splits = WORKLOAD.splits()
    told: list[float] = []
    epochs = changes.pop("epochs", 8)
    found = narrow(
        model,
        TrainingData(WORKLOAD, splits["train"], splits["validation"]),
        Cut(**{"ratio": 0.5, "batchnorm_batches": 5, "gradient_batches": 3, **changes}),
        Training(epochs=epochs, batch_size=32, learning_rate=5e-3),
        objective=Hard(WORKLOAD.loss),
        seed=0,
        device="cpu",
        checkpoints=lambda step: None,
        progress=lambda fraction, text: told.append(fraction),
    )
    return model, found, told


def test_tuning_helps_and_everything_is_reported(untrained: nn.Module) -> None:
    model, found, told = narrowed(untrained)
    assert found.layers == {"conv1": (8, 4), "conv2": (16, 8), "dense": (32, 16), "head": (10, 10)}
    assert found.batchnorm_layers == 2
    assert found.validation["tuned"] > found.validation["pruned"] + 0.3
    assert [row["epoch"] for row in found.history] == list(range(1, 9))
    assert found.after.parameters == sum(p.numel() for p in model.parameters()) < found.before.parameters / 2
    assert told == sorted(told) and told[-1] == 1.0


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "hessian"])
def test_the_same_seed_gives_the_same_bits(untrained: nn.Module, importance: str) -> None:
    torch.manual_seed(1)
    first, plan, _ = narrowed(untrained, importance=importance, steps=2, epochs=3)
    torch.manual_seed(2)
    second, again, _ = narrowed(untrained, importance=importance, steps=2, epochs=3)
    assert plan.plan == again.plan and plan.history == again.history
    assert [row["step"] for row in plan.history] == [1, 2, 2]
    other = second.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in first.state_dict().items())


def test_gradients_decide_what_taylor_removes(untrained: nn.Module) -> None:
    _, by_size, _ = narrowed(untrained, epochs=1)
    _, by_gradient, _ = narrowed(untrained, epochs=1, importance="taylor")
    assert by_size.plan != by_gradient.plan
    assert by_size.layers == by_gradient.layers


def test_each_step_rewinds_the_learning_rate_and_zero_epochs_tune_nothing(untrained: nn.Module) -> None:
    _, found, _ = narrowed(untrained, steps=2, epochs=6)
    rates = [row["lr"] for row in found.history]
    assert rates[0] > rates[1] > rates[2] and rates[:3] == rates[3:]
    model, bare, _ = narrowed(untrained, steps=2, epochs=0)
    assert bare.layers == found.layers and bare.after == found.after
    assert bare.history == [] and bare.validation == {}
    assert bare.batchnorm_layers == 2
    conv = untrained.get_submodule("conv1").weight
    assert isinstance(conv, torch.Tensor)
    kept = {tuple(row.flatten().tolist()) for row in conv}
    narrow = model.get_submodule("conv1").weight
    assert isinstance(narrow, torch.Tensor)
    assert all(tuple(row.flatten().tolist()) in kept for row in narrow)  # no weight trained


def test_hessian_takes_the_mean_of_squared_gradients_of_single_rows(untrained: nn.Module) -> None:
    model = copy.deepcopy(untrained).eval()
    split = WORKLOAD.splits()["train"]
    rows = Rows(WORKLOAD, split, torch.device("cpu"))
    batches = [rows(torch.tensor([0, 1, 2]), None), rows(torch.tensor([3, 4]), None)]
    mean_squared_gradients(model, batches, WORKLOAD)
    found = model.get_submodule("head").weight
    assert isinstance(found, nn.Parameter) and found.grad is not None
    wanted = torch.zeros_like(found)
    for row in range(5):
        one = rows(torch.tensor([row]), None)
        (gradient,) = torch.autograd.grad(WORKLOAD.loss(model(**one.inputs), one.targets), [found])
        wanted += gradient**2 / 5
    torch.testing.assert_close(found.grad, wanted)
