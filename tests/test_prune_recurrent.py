"""Units of recurrent layers are channels: they are ranked, switched off and removed like others, or left alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from recurrent_nets import Reader, tokens
from torch import Tensor, nn

from tasks.allocate.layer_graph import layer_graph
from tasks.allocate.layer_shapes import read_structure
from tasks.allocate.structure import weight_count
from tasks.torch_models.channel_groups import ChannelGroup, Member
from tasks.torch_models.channel_pruner import ChannelPruner
from tasks.torch_models.pruning_plan import apply_plan

NARROWED: list[dict[str, Any]] = [
    {"cell": "gru", "takes": "mean", "batch_first": True, "bidirectional": True},
    {"cell": "gru", "takes": "states", "num_layers": 2},
    {"cell": "lstm", "takes": "mean", "num_layers": 2, "bidirectional": True, "bias": False},
    {"cell": "lstm", "takes": "states", "batch_first": True},
    {"cell": "rnn", "takes": "last", "num_layers": 2, "batch_first": True, "nonlinearity": "relu"},
]


@contextmanager
def _switched_off(model: nn.Module, group: ChannelGroup, gone: set[int]) -> Iterator[None]:
    """All weights that make or read these channels are 0."""
    saved: list[tuple[nn.Parameter, Tensor]] = []
    for member in group.members:
        module = model.get_submodule(member.module)
        index = torch.tensor([i for i, root in zip(member.indices, member.roots, strict=True) if root in gone])
        for parameter, dimension, places in _slices(module, member, index.to(torch.int64)):
            saved.append((parameter, parameter.detach().clone()))
            parameter.index_fill_(dimension, places, 0.0)
    try:
        yield
    finally:
        for parameter, value in reversed(saved):
            parameter.copy_(value)


def _slices(module: nn.Module, member: Member, index: Tensor) -> Iterator[tuple[nn.Parameter, int, Tensor]]:
    """The parameters that hold these of the member's channels, in which dimension, and where."""
    if isinstance(module, nn.RNNBase) and member.outputs:
        own = torch.unique(index % module.hidden_size)
        for name in module._flat_weights_names:
            gates = getattr(module, name).shape[0] // module.hidden_size
            yield getattr(module, name), 0, torch.cat([own + gate * module.hidden_size for gate in range(gates)])
    elif isinstance(module, nn.RNNBase):
        for name in module._flat_weights_names:
            if name.startswith("weight_ih_l0"):
                yield getattr(module, name), 1, index
    else:
        for name, parameter in module.named_parameters(recurse=False):
            if name != "bias" or member.outputs:
                yield parameter, int(not member.outputs), index


@pytest.mark.parametrize("kind", NARROWED, ids=lambda kind: f"{kind['cell']}-{kind['takes']}")
def test_removing_units_is_switching_them_off(kind: dict[str, Any]) -> None:
    model, inputs = Reader(**kind), {"tokens": tokens()}
    off = copy.deepcopy(model).eval()
    pruner = ChannelPruner(model, inputs, ratio=0.5)
    groups = pruner.groups()
    assert [(group.name, group.parts) for group in groups] == [("read", 1 + model.read.bidirectional), ("dense", 1)]
    pruner.step()
    assert pruner.widths() == {"read": 6, "dense": 3, "head": 2}

    narrow = model.eval()(**inputs)
    with torch.no_grad(), ExitStack() as stack:
        for group in groups:
            stack.enter_context(_switched_off(off, group, group.removed(group.width // 2)))
        torch.testing.assert_close(off(**inputs), narrow)

    rebuilt = Reader(**kind).eval()
    apply_plan(rebuilt, inputs, pruner.plan)
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt(**inputs), narrow)


class Stacked(nn.Module):
    """A convolution, then two recurrent layers, of which the second begins where the first ended."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, 8, 3, padding=1)
        self.first = nn.GRU(8, 8, batch_first=True)
        self.second = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, signal: Tensor) -> Tensor:
        steps, states = self.first(self.stem(signal).transpose(1, 2))
        answer: Tensor = self.head(self.second(steps, states)[0].mean(1))
        return answer


def test_what_takes_states_stays_and_the_layers_around_it_are_narrowed() -> None:
    pruner = ChannelPruner(Stacked(), {"signal": torch.rand(2, 2, 9)}, ratio=0.5, ignore=("first",))
    assert set(pruner.left_alone) == {"second"}
    pruner.step()
    assert pruner.widths() == {"stem": 4, "first": 8, "second": 8, "head": 3}


def test_a_layer_whose_two_last_states_are_read_is_left_alone() -> None:
    model = Reader("lstm", takes="states", bidirectional=True)
    pruner = ChannelPruner(model, {"tokens": tokens()}, ratio=0.5)
    assert set(pruner.left_alone) == {"read"}
    pruner.step()
    assert pruner.widths() == {"read": 12, "dense": 3, "head": 2}


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_the_allocator_times_recurrent_layers_at_every_width(cell: str) -> None:
    model, inputs = Reader(cell, num_layers=2, bidirectional=True, batch_first=True), {"tokens": tokens(2, 7)}
    pruner = ChannelPruner(model, inputs, ratio=0.5)
    structure = read_structure(model, inputs, pruner.groups(), pruner.outputs, min_keep=0.1, round_to=None)
    read = structure.layers[0]
    assert (read.work.size, read.inputs, read.outputs, read.output_groups) == ((7,), 8, 24, {"read": 24})
    matrices = [p for name, p in model.read.named_parameters() if "weight" in name]
    assert weight_count(read.work, 8, 24) == sum(p.numel() for p in matrices)
    session = onnxruntime.InferenceSession(layer_graph(read.work, 8, 12, int8=True))
    (answer,) = session.run(None, {"x": np.zeros((3, 7, 8), np.float32)})
    assert answer.shape == (3, 7, 12)
