"""Attention is narrowed head by head: forward() counts on the number of heads, or on their width, or on both."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from tasks.running.errors import PruningRefused
from tasks.torch_models.channel_groups import ChannelGroup
from tasks.torch_models.channel_pruner import ChannelPruner
from tasks.workloads.text_encoder import EncoderShape, TextEncoder

WIDTH, HEADS = 16, 4
Kind = Literal["count", "width", "both", "fused", "torch"]


class Attention(nn.Module):
    """Self-attention as people write it; what is fixed in the code is what ``kind`` says."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH) if kind == "fused" else nn.Identity()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.kind == "fused":
            parts = self.qkv(tokens).chunk(3, dim=-1)
        else:
            parts = (self.query(tokens), self.key(tokens), self.value(tokens))
        query, key, value = (self._by_head(part) for part in parts)
        seen = functional.scaled_dot_product_attention(query, key, value)
        answer: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return answer

    def _by_head(self, tokens: Tensor) -> Tensor:
        count = -1 if self.kind == "width" else HEADS
        width = -1 if self.kind in ("count", "fused") else WIDTH // HEADS
        split: Tensor = tokens.unflatten(2, (count, width))  # type: ignore[no-untyped-call]
        return split.transpose(1, 2)


class Torchs(nn.Module):
    """torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        answer: Tensor = self.inner(tokens, tokens, tokens, need_weights=False)[0]
        return answer


class Encoder(nn.Module):
    """One block, and a scale by channel."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(6, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = Torchs() if kind == "torch" else Attention(kind)
        self.wide, self.narrow = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.scale = nn.Parameter(torch.rand(WIDTH))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        hidden = hidden + self.attention(self.norm(hidden))
        hidden = hidden + self.scale * self.narrow(functional.gelu(self.wide(hidden)))
        logits: Tensor = self.head(hidden.mean(1))
        return logits


def tokens() -> dict[str, Tensor]:
    return {"tokens": torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(0))}


def grouped(kind: Kind) -> tuple[ChannelPruner, dict[str, ChannelGroup]]:
    pruner = ChannelPruner(Encoder(kind), tokens(), ratio=0.5)
    return pruner, {group.name: group for group in pruner.groups()}


def test_every_head_loses_as_much_where_their_number_is_fixed() -> None:
    pruner, groups = grouped("count")
    assert pruner.left_alone == {}
    assert [(g.parts, g.block) for g in groups.values()] == [(1, 1), (HEADS, 1), (1, 1)]
    pruner.step()
    heads = [[i // 4 for i in range(16) if i not in gone] for _, _, gone in pruner.plan if len(gone) == 8]
    assert [0, 0, 1, 1, 2, 2, 3, 3] in heads
    assert pruner.widths()["attention.query"] == pruner.widths()["attention.value"] == 8


@pytest.mark.parametrize("steps", [1, 3])
def test_whole_heads_go_where_their_width_is_fixed(steps: int) -> None:
    _, groups = grouped("width")
    group = groups["attention.query"]
    assert (group.parts, group.block) == (1, 4)
    gone = group.removed(8)
    assert len({i // 4 for i in gone}) == 2
    pruner = ChannelPruner(Encoder("width"), tokens(), ratio=0.4, steps=steps)
    for _ in range(steps):
        pruner.step()
    assert pruner.widths()["attention.query"] == 8 and pruner.widths()["wide"] == 19


def test_one_projection_for_all_loses_as_much_in_each_head_of_each_part() -> None:
    pruner, groups = grouped("fused")
    assert pruner.left_alone == {} and groups["attention.qkv"].parts == 3 * HEADS
    pruner.step()
    assert pruner.widths()["attention.qkv"] == 24
    assert pruner.model.get_submodule("attention.out").in_features == 8


def test_what_is_fixed_on_both_sides_is_left_alone_and_the_rest_is_narrowed() -> None:
    pruner, groups = grouped("both")
    assert [name.startswith("attention.") for name in pruner.left_alone] == [True]
    assert "attention" in next(iter(pruner.left_alone.values()))  # where it failed
    assert set(groups) == {"embed", "wide"}
    pruner.step()
    assert pruner.widths()["embed"] == 8 and pruner.widths()["wide"] == 16


def test_the_heads_of_torchs_own_attention_keep_their_channels_apart() -> None:
    pruner, groups = grouped("torch")
    assert groups["embed"].parts == HEADS
    pruner.step()
    assert pruner.model(**tokens()).shape == (3, 3)


@pytest.mark.parametrize("kind", ["count", "width", "fused", "torch"])
def test_a_model_without_channels_answers_as_the_pruned_one_and_is_put_back(kind: Kind) -> None:
    pruner, groups = grouped(kind)
    model = pruner.model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole = model(**tokens())
    for name, group in groups.items():
        other = ChannelPruner(Encoder(kind), tokens(), ratio=0.5, ratios=dict.fromkeys(groups, 0.0) | {name: 0.5})
        other.step()
        with pruner.without(group, group.width // 2):
            torch.testing.assert_close(model(**tokens()), other.model.eval()(**tokens()))
    assert torch.equal(model(**tokens()), whole)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Normed(nn.Module):
    """Layers whose weight is computed at every call, before and after plain ones."""

    def __init__(self, norm: Callable[[nn.Module], nn.Module], every: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        some = norm if every else nn.Identity()
        self.first, self.second = some(nn.Linear(6, 16)), some(nn.Linear(16, 16))
        self.third, self.fourth = norm(nn.Linear(16, 16)), some(nn.Linear(16, 16))
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = tokens.mean(1)
        for layer in (self.first, self.second, self.third, self.fourth):
            hidden = torch.relu(layer(hidden))
        logits: Tensor = self.head(hidden)
        return logits


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_layers_with_a_computed_weight_are_left_alone_and_the_rest_is_narrowed(
    norm: Callable[[nn.Module], nn.Module],
) -> None:
    model = Normed(norm, every=False).eval()
    before = model(**tokens())
    pruner = ChannelPruner(model, tokens(), ratio=0.5)
    assert torch.equal(model(**tokens()), before), "trials leave the model as it was"
    assert set(pruner.left_alone) == {"second", "third"}, "what goes into one is as wide as it"
    for why in pruner.left_alone.values():
        assert why.startswith("weight of 'third' is computed by ") and "remove_parametrizations" in why
    pruner.step()
    widths = {"first": 8, "second": 16, "third": 16, "fourth": 8, "head": 3}
    assert pruner.widths() == widths and model(**tokens()).shape == (3, 3)


def test_where_every_weight_is_computed_pruning_says_so() -> None:
    with pytest.raises(
        PruningRefused, match=r"layer 'third' cannot be narrowed: weight of 'third' is computed by Weig"
    ):
        ChannelPruner(Normed(parametrizations.weight_norm, every=True), tokens(), ratio=0.5)


def test_an_encoder_of_texts_loses_whole_heads_and_the_others_answer_as_before() -> None:
    torch.manual_seed(0)
    shape = EncoderShape(vocabulary=20, features=WIDTH, layers=1, heads=HEADS, hidden=24, places=8, pad=0)
    model, tokens = TextEncoder(shape, 3).eval(), torch.randint(1, 20, (4, 6))
    whole = copy.deepcopy(model)
    pruner = ChannelPruner(model, {"tokens": tokens}, ratio=0.0, ratios={"layers.0.attention.query": 0.5})
    pruner.step()
    size = WIDTH // HEADS
    (gone,) = (indices for name, outputs, indices in pruner.plan if name == "layers.0.attention.value" and outputs)
    heads = sorted({index // size for index in gone})
    assert sorted(gone) == [head * size + place for head in heads for place in range(size)] and len(heads) == 2
    with torch.no_grad():
        whole.get_parameter("layers.0.attention.out.weight")[:, gone] = 0.0
        assert torch.allclose(model(tokens), whole(tokens), atol=1e-6)
