"""Blocks in stages, and the order in which shards pass through them; test_micro_shards has the bits."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from taught_workloads import InBlocks, taught
from torch import Tensor, nn

from tasks.running.errors import WorkloadError
from tasks.torch_models.fit_seeding import random_state, seed_everything, set_random_state
from tasks.torch_models.pipelined_shards import Stages, _balanced, _one_forward_one_backward
from tasks.workloads.architectures import ImageClassifier
from tasks.workloads.mobilenet import MobileNetClassifier
from tasks.workloads.resnet import ResNet20
from tasks.workloads.vgg import VggClassifier
from tasks.workloads.workload import blocks_of

IMAGES = {"image": torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))}


def test_stages_are_neighbours_of_about_equal_cost() -> None:
    assert _balanced([1, 1, 1, 1], 2) == [0, 2, 4] and _balanced([5, 1, 1, 1], 2) == [0, 1, 4]
    assert _balanced([1, 1, 10, 1, 1, 1], 3) == [0, 2, 3, 6] and _balanced([3, 2], 2) == [0, 1, 2]
    assert _balanced([1], 1) == [0, 1]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("shards", [1, 2, 8])
def test_a_rank_holds_as_many_shards_as_there_are_ranks_behind_it_and_one_more(ranks: int, shards: int) -> None:
    for number in range(ranks):
        held, most, done = set[int](), 0, list[int]()
        for move in _one_forward_one_backward(shards, behind=ranks - 1 - number):
            if move >= 0:
                held.add(move)
            else:
                held.remove(-1 - move)
                done.append(-1 - move)
            most = max(most, len(held))
        assert done == list(range(shards)) and not held, "summed in their order"
        assert most == min(shards, ranks - number)


def test_each_parameter_and_buffer_belongs_to_the_stage_that_uses_it() -> None:
    model = InBlocks()
    stages = Stages(model, model.blocks(), IMAGES, 2)
    first, second = map(set, stages.names)
    assert first | second == set(model.state_dict()) and not first & second
    assert "conv.weight" in first and "norm.running_mean" in first and {"gain", "head.weight"} <= second
    assert [len(blocks) for blocks in stages.blocks] in ([1, 4], [2, 3], [3, 2])


@pytest.mark.parametrize("kind", [ImageClassifier, VggClassifier, ResNet20, MobileNetClassifier])
def test_the_networks_that_come_along_name_their_blocks(kind: Any) -> None:
    model = kind(shape=(3, 16, 16), classes=5, width=0.25)
    blocks = blocks_of(taught("Squares"), model)
    assert blocks is not None
    stages = Stages(model, blocks, {"image": torch.rand(2, 3, 16, 16)}, 3)
    assert sum(map(len, stages.parameters)) == len(list(model.parameters())) and all(map(len, stages.parameters))


def test_a_model_with_something_around_it_has_no_blocks_that_are_known() -> None:
    model = ResNet20(shape=(3, 16, 16), classes=5)
    model.register_forward_pre_hook(lambda module, inputs: None)
    assert blocks_of(taught("Squares"), model) is None and blocks_of(taught("Blobs"), nn.Linear(4, 3)) is None


class Wrong(InBlocks):
    """Blocks that are not the model, each in its way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.other = how, nn.Linear(16, 16)

    def forward(self, image: Tensor) -> Tensor:
        hidden = self._third(torch.relu_(self.second(self._first(image))))
        answer: Tensor = self.head(hidden if self.how == "unused" else self.other(self.other(hidden)))
        return answer

    def blocks(self) -> list[Any]:
        first, *middle, head = super().blocks()
        second, *others = middle
        wrong: dict[str, list[Callable[..., Any]]] = {
            "other": [first, *middle, head],
            "order": [second, first, *others, self.other, self.other, head],
            "unused": [first, *middle, head],
            "twice": [first, *middle, self.other, self.other, head],
            "two": [lambda image: (image, image), first, head],
        }
        return wrong[self.how]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("other", "the 5 blocks of Wrong, one after the other, do not answer as the model itself does"),
        ("order", "block 1 of Wrong does not take"),
        ("unused", "other.weight of Wrong belongs to none of its blocks"),
        ("two", "block 1 of Wrong answers a tuple; blocks pass one tensor on"),
    ],
)
def test_blocks_that_are_not_the_model_are_refused(how: str, said: str) -> None:
    model = Wrong(how)
    with pytest.raises(WorkloadError, match=said):
        Stages(model, model.blocks(), IMAGES, 2)


def test_what_two_stages_share_is_refused() -> None:
    model = Wrong("twice")
    with pytest.raises(WorkloadError, match=r"other\.weight of Wrong belongs to blocks of two processes"):
        Stages(model, model.blocks(), IMAGES, 7)
    assert len(Stages(model, model.blocks(), IMAGES, 2).blocks) == 2, "in one stage it may be used twice"


class Watching(InBlocks):
    """Its first block keeps a mean of what it saw: in the model itself, which no block is or calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("constant", torch.ones(()))

    def _first(self, image: Tensor) -> Tensor:
        if self.training:
            self.get_buffer("mean").copy_(image.mean())
        return super()._first(image) * self.get_buffer("constant")


def test_a_buffer_that_no_block_has_must_not_change() -> None:
    model = Watching()
    with pytest.raises(WorkloadError, match="mean of Watching changes in training and belongs to none of its blocks"):
        Stages(model, model.blocks(), IMAGES, 2)
    assert model.get_buffer("mean") == 0 and model.norm.num_batches_tracked == 0, "as it was"


class TwoLayers(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, tokens: Tensor) -> Tensor:
        answer: Tensor = self.second(self.first(tokens))
        return answer


def drawn() -> tuple[Any, ...]:
    return torch.rand(3).tolist(), random.random(), random.gauss(0, 1), np.random.standard_normal(3).tolist()


def test_layers_that_torch_computes_otherwise_without_gradients_are_the_same_in_blocks() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = TwoLayers(layer, nn.Linear(8, 3))
    blocks: list[Callable[..., Tensor]] = [lambda tokens: layer(tokens), model.second]
    assert len(Stages(model, blocks, {"tokens": torch.rand(2, 5, 8)}, 2).blocks) == 2


def test_generators_go_on_where_another_process_left_off() -> None:
    cpu = torch.device("cpu")
    seed_everything(3, 1)
    drawn()  # of pairs of numbers the second is kept for later
    state = random_state(cpu)
    wanted = drawn()
    seed_everything(4, 1)
    set_random_state(state, cpu)
    assert drawn() == wanted
