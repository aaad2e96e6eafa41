"""Pruning with fine-tuning on real digits: reproducible, led by gradients where asked, better for the tuning."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tasks.objective import Hard
from tasks.prune.narrow import Narrowed, narrow
from tasks.stage import WorkloadRef
from tasks.torch_variant import build
from tasks.workload import load_workload

WORKLOAD = load_workload(WorkloadRef(path="tasks.workloads.digits:Digits", arguments={"rows": 500}))


@pytest.fixture(scope="module")
def untrained() -> nn.Module:
    return build(WORKLOAD, "teacher", {"width": 0.25})


def narrowed(model: nn.Module, **changes: Any) -> tuple[nn.Module, Narrowed, list[float]]:
    model = copy.deepcopy(model)
    splits = WORKLOAD.splits()
    told: list[float] = []
    settings: dict[str, Any] = {
        "ratio": 0.5,
        "importance": "magnitude",
        "scope": "local",
        "steps": 1,
        "round_to": 1,
        "ignore": (),
        "epochs": 8,
        "batch_size": 32,
        "learning_rate": 5e-3,
        "weight_decay": 0.01,
        "patience": None,
        "batchnorm_batches": 5,
        "gradient_batches": 3,
        "seed": 0,
    }
    found = narrow(
        model,
        workload=WORKLOAD,
        train=splits["train"],
        validation=splits["validation"],
        objective=Hard(WORKLOAD.loss),
        device="cpu",
        checkpoints=lambda step: None,
        progress=lambda fraction, text: told.append(fraction),
        **{**settings, **changes},
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


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
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
