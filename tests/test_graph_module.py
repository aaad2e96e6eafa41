"""Traced modules as plain JSON: built again they answer the same bits, and what cannot be written down is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tasks.running.errors import WorkloadError
from tasks.workloads.architectures import ImageClassifier, ShallowClassifier
from tasks.workloads.graph_module import describe_graph, graph_module
from tasks.workloads.mobilenet import MobileNetClassifier
from tasks.workloads.resnet import ResNet20
from tasks.workloads.vgg import VggClassifier


class Attention(nn.Module):
    """Parameters of its own, a mask of minus infinities, indexing, keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.position = nn.Parameter(torch.randn(5, 8))
        self.register_buffer("scale", torch.tensor(8.0).sqrt())
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens) + self.position[None, :, :]
        scores = self.query(hidden) @ self.key(hidden).transpose(1, 2) / self.scale
        scores = scores.masked_fill((tokens == 0)[:, None, :], float("-inf"))
        mixed = torch.softmax(scores, dim=-1) @ self.value(hidden)
        answer: Tensor = self.head(nn.functional.gelu(self.norm(mixed + hidden)).mean(dim=1))
        return answer


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 6)])
        self.head = nn.Linear(9, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        hidden = left
        for layer in self.layers:
            hidden = torch.relu(layer(hidden))
        answer: Tensor = self.head(torch.cat([hidden, right.flatten(1)], dim=1).clamp(min=0))
        return answer


class Own(nn.Module):
    """A tensor that is neither parameter nor buffer, in a layer of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.loose = torch.randn(2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.loose


MODELS: list[tuple[Callable[[], nn.Module], dict[str, Tensor]]] = [
    (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
        {"input": torch.randn(5, 1, 8, 8)},
    ),
    (lambda: ImageClassifier(shape=(1, 8, 8), classes=3), {"image": torch.randn(5, 1, 8, 8)}),
    (lambda: ShallowClassifier(shape=(1, 8, 8), classes=3), {"image": torch.randn(5, 1, 8, 8)}),
    (lambda: VggClassifier(shape=(1, 16, 16), classes=3, width=0.1), {"image": torch.randn(3, 1, 16, 16)}),
    (lambda: ResNet20(shape=(1, 16, 16), classes=3, width=0.5), {"image": torch.randn(3, 1, 16, 16)}),
    (lambda: MobileNetClassifier(shape=(1, 16, 16), classes=3, width=0.25), {"image": torch.randn(3, 1, 16, 16)}),
    (Attention, {"tokens": torch.tensor([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]])}),
    (lambda: nn.Sequential(nn.Linear(3, 2), Own()), {"input": torch.randn(4, 3)}),
    (TwoInputs, {"left": torch.randn(4, 4), "right": torch.randn(4, 1, 3)}),
]


@pytest.mark.parametrize(("make", "inputs"), MODELS, ids=[f"{i}" for i in range(len(MODELS))])
def test_a_module_built_again_answers_the_same_bits(make: Callable[[], nn.Module], inputs: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    model = make()
    model.train()
    with torch.no_grad():
        model(**inputs)  # moves the statistics away from where they start
    model.eval()
    document, traced = describe_graph(model)
    again = graph_module(json.loads(json.dumps(document, allow_nan=False)))
    again.load_state_dict(traced.state_dict())
    again.eval()
    with torch.no_grad():
        assert torch.equal(model(**inputs), again(**inputs))
    parts = {type(m) for m in model.modules() if type(m).__module__.startswith("torch.nn") and not list(m.children())}
    assert parts - {nn.ModuleList, nn.Sequential, nn.Identity} <= {type(m) for m in again.modules()}  # still layers


def test_it_trains_like_the_original() -> None:
    torch.manual_seed(0)
    model = MODELS[0][0]()
    document, traced = describe_graph(model)
    again = graph_module(document)
    again.load_state_dict(traced.state_dict())
    images = torch.randn(8, 1, 8, 8)
    for one in (model, again):
        one.train()
        one(images).square().mean().backward()
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad), name
    for (name, before), (_, after) in zip(model.named_buffers(), again.named_buffers(), strict=True):
        assert torch.equal(before, after), name


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class CallsOut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _ours(x)


def _ours(x: Tensor) -> Tensor:
    return x + 1


torch.fx.wrap("_ours")


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (Decides(), "must not decide by the values of tensors"),
        (CallsOut(), "_ours, which is no function of torch"),
        (nn.Sequential(nn.MultiheadAttention(4, 2)), "MultiheadAttention"),
    ],
)
def test_what_cannot_be_written_down_is_named(model: nn.Module, text: str) -> None:
    with pytest.raises(WorkloadError, match=text):
        describe_graph(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2},
        {"layers": {"0": {"class": "Module.__init__", "arguments": {}}}},
        {"nodes": [{"op": "call_function", "name": "a", "target": "os.system", "args": ["tuple", []], "kwargs": {}}]},
        {"nodes": [{"op": "call_function", "name": "a", "target": "torch._C", "args": ["tuple", []], "kwargs": {}}]},
    ],
)
def test_a_document_that_was_tampered_with_is_refused(changes: dict[str, Any]) -> None:
    document, _ = describe_graph(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(WorkloadError, match="does not describe a module"):
        graph_module({**document, **changes})
