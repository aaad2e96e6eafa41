"""Blocks in stages, and the order in which shards pass through them; test_micro_shards has the bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from taught_workloads import InBlocks, taught
from torch import Tensor, nn

from tasks.running.errors import SpecError, WorkloadError
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
    names = {id(value): name for name, value in (*model.named_parameters(), *model.named_buffers())}
    first, second = ({names[id(value)] for value in own} for own in stages.tensors)
    assert first | second == set(names.values()) and not first & second
    assert "conv.weight" in first and "norm.running_mean" in first and {"gain", "head.weight"} <= second
    assert [len(blocks) for blocks in stages.blocks] in ([1, 3], [2, 2])


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
        hidden = self._third(self.second(self._first(image)))
        answer: Tensor = self.head(hidden if self.how == "unused" else self.other(self.other(hidden)))
        return answer

    def blocks(self) -> list[Any]:
        first, second, third, head = super().blocks()
        wrong: dict[str, list[Callable[..., Any]]] = {
            "other": [first, second, third, head],
            "order": [second, first, third, self.other, self.other, head],
            "unused": [first, second, third, head],
            "twice": [first, second, third, self.other, self.other, head],
            "two": [lambda image: (image, image), first, head],
        }
        return wrong[self.how]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("other", "the 4 blocks of Wrong, one after the other, do not answer as the model itself does"),
        ("order", "block 1 of Wrong does not take"),
        ("unused", "other.weight of Wrong belongs to none of its blocks"),
        ("two", "block 1 of Wrong answers a tuple; blocks pass one tensor on"),
    ],
)
def test_blocks_that_are_not_the_model_are_refused(how: str, said: str) -> None:
    model = Wrong(how)
    with pytest.raises(WorkloadError, match=said):
        Stages(model, model.blocks(), IMAGES, 2)


def test_what_two_stages_share_and_more_processes_than_blocks_are_refused() -> None:
    model = Wrong("twice")
    with pytest.raises(WorkloadError, match=r"other\.weight of Wrong belongs to blocks of two processes"):
        Stages(model, model.blocks(), IMAGES, 6)
    assert len(Stages(model, model.blocks(), IMAGES, 2).blocks) == 2, "in one stage it may be used twice"
    with pytest.raises(SpecError, match="5 processes with engine: pipeline, and InBlocks names 4 blocks"):
        Stages(InBlocks(), InBlocks().blocks(), IMAGES, 5)
