"""Structured pruning: what goes, what stays, what is refused, and that plan and weights rebuild the same model."""

from __future__ import annotations

import json

import pytest
import torch
from narrow_nets import FAMILIES, net
from torch import Tensor, nn

from tasks.running.errors import PruningRefused
from tasks.torch_models.batchnorm import reestimate_batchnorm
from tasks.torch_models.channel_pruner import ChannelPruner, Importance, Scope
from tasks.torch_models.pruning_plan import apply_plan
from tasks.torch_models.torch_cost import TorchCost, torch_cost

pytestmark = pytest.mark.slow  # trains or exports real networks


class Residual(nn.Module):
    """A stem, a residual block and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.inner = nn.Conv2d(16, 24, 3, padding=1)
        self.outer = nn.Conv2d(24, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.stem(image)))
        hidden = torch.relu(hidden + self.outer(torch.relu(self.inner(hidden))))
        logits: Tensor = self.head(hidden.mean(dim=(2, 3)))
        return logits


class Depthwise(nn.Module):
    """Two depthwise separable convolutions; the answer is squeezed."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 12, 1),
            nn.ReLU(),
            nn.Conv2d(12, 12, 3, padding=1, groups=4),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(48, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        answer: Tensor = self.body(image).squeeze(1)
        return answer


class Flat(nn.Module):
    def __init__(self, units: int = 10) -> None:
        super().__init__()
        self.first = nn.Linear(6, units)
        self.second = nn.Linear(units, units)
        self.head = nn.Linear(units, 3)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.second(torch.relu(self.first(image)))))
        return logits


class Detaching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class Stopped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.stop = Detaching()
        self.last = nn.ReLU()

    def forward(self, image: Tensor) -> Tensor:
        answer: Tensor = self.last(self.stop(self.first(image)))
        return answer


class FixedSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.head = nn.Linear(4, 3)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.first(image)).reshape(-1, 2, 4).mean(1))
        return logits


def images() -> dict[str, Tensor]:
    return {"image": torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))}


def rows() -> dict[str, Tensor]:
    return {"image": torch.rand(4, 6, generator=torch.Generator().manual_seed(0))}


def pruned(model: nn.Module, inputs: dict[str, Tensor], **kwargs: object) -> ChannelPruner:
    pruner = ChannelPruner(model, inputs, **{"ratio": 0.5, **kwargs})  # type: ignore[arg-type]
    pruner.step()
    return pruner


def test_channels_are_really_removed_and_the_head_stays() -> None:
    torch.manual_seed(0)
    model = Residual()
    before = torch_cost(model, images())
    pruner = pruned(model, images())
    assert pruner.widths() == {"stem": 8, "inner": 12, "outer": 8, "head": 5}
    assert pruner.outputs == ("head",)
    assert pruner.untraced == ()
    assert model.stem.weight.shape == (8, 3, 3, 3)
    assert model.norm.running_mean is not None and model.norm.running_mean.shape == (8,)
    after = torch_cost(model, images())
    assert before == TorchCost(16 * 27 + 32 + 16 * 24 * 9 + 24 + 24 * 16 * 9 + 16 + 85, 64 * (432 + 2 * 3456) + 80)
    assert after == TorchCost(8 * 27 + 16 + 8 * 12 * 9 + 12 + 12 * 8 * 9 + 8 + 45, 64 * (216 + 2 * 864) + 40)
    assert model(**images()).shape == (4, 5)


def test_the_channels_of_least_magnitude_go() -> None:
    torch.manual_seed(0)
    model = Flat()
    with torch.no_grad():
        model.first.weight[[1, 4, 7]] *= 1e-3
        model.second.weight[:, [1, 4, 7]] *= 1e-3
    kept = model.first.weight.detach()[[0, 2, 3, 5, 6, 8, 9]]
    pruner = pruned(model, rows(), ratio=0.3)
    assert ("first", True, [1, 4, 7]) in pruner.plan
    assert torch.equal(model.first.weight, kept)


@pytest.mark.parametrize("model_class", [Residual, Depthwise])
@pytest.mark.parametrize("steps", [1, 3])
def test_plan_and_weights_rebuild_bit_identical_outputs(model_class: type[nn.Module], steps: int) -> None:
    torch.manual_seed(0)
    model = model_class()
    pruner = ChannelPruner(model, images(), ratio=0.5, steps=steps)
    for _ in range(steps):
        pruner.step()
        with torch.no_grad():  # stands for the fine-tuning between the steps
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    plan = json.loads(json.dumps(pruner.plan))
    assert len(plan) >= 2
    torch.manual_seed(99)
    rebuilt = model_class()
    apply_plan(rebuilt, {name: value * 0 for name, value in images().items()}, plan)
    rebuilt.load_state_dict(model.state_dict(), strict=True)
    model.eval()
    rebuilt.eval()
    assert torch.equal(model(**images()), rebuilt(**images()))
    assert sum(p.numel() for p in rebuilt.parameters()) < 0.6 * sum(p.numel() for p in model_class().parameters())


def test_a_plan_of_other_code_is_refused() -> None:
    with pytest.raises(PruningRefused, match="plan does not fit model Flat"):
        apply_plan(Flat(), rows(), [("renamed", True, [0])])


def test_depthwise_and_grouped_convolutions_stay_whole() -> None:
    torch.manual_seed(0)
    pruner = pruned(Depthwise(), images())
    assert pruner.widths() == {"body.0": 4, "body.3": 4, "body.5": 4, "body.7": 4, "body.10": 1}
    assert pruner.outputs == ("body.10",)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_scopes(scope: Scope) -> None:
    torch.manual_seed(0)
    model = Flat(20)
    with torch.no_grad():
        model.first.weight *= torch.linspace(0.5, 1.5, 20)[:, None]
    widths = pruned(model, rows(), scope=scope).widths()
    assert widths["head"] == 3
    assert widths["first"] + widths["second"] == 20
    assert (widths["first"] == widths["second"]) is (scope == "local")


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "hessian"])
def test_importances(importance: Importance) -> None:
    torch.manual_seed(0)
    model = Residual()
    pruner = ChannelPruner(model, images(), ratio=0.25, importance=importance)
    model(**images()).square().sum().backward()
    pruner.step()
    assert pruner.widths()["stem"] == 12
    assert pruner.widths()["inner"] == 18


def test_steps_share_the_ratio() -> None:
    torch.manual_seed(0)
    pruner = ChannelPruner(Flat(), rows(), ratio=0.6, steps=3)
    seen = []
    for _ in range(3):
        pruner.step()
        seen.append(pruner.widths()["first"])
    assert seen == [8, 6, 4]


def test_round_to_and_ignored_layers() -> None:
    torch.manual_seed(0)
    assert pruned(Flat(20), rows(), ratio=0.3, round_to=8).widths() == {"first": 8, "second": 8, "head": 3}
    assert pruned(Flat(), rows(), ignore=("first",)).widths() == {"first": 10, "second": 5, "head": 3}
    with pytest.raises(PruningRefused, match=r"ignores \['nowhere'\].*it has \['first', 'head', 'second'\]"):
        pruned(Flat(), rows(), ignore=("nowhere",))
    with pytest.raises(PruningRefused, match="every layer is the output layer"):
        pruned(Flat(), rows(), ignore=("first", "second"))


def test_ratios_by_layer_hold_for_what_is_tied_to_it() -> None:
    torch.manual_seed(0)
    found = pruned(Residual(), images(), ratios={"outer": 0.75, "inner": 0.0})
    assert found.widths() == {"stem": 4, "inner": 24, "outer": 4, "head": 5}
    assert pruned(Residual(), images(), ratios={"stem": 0.25}).widths() == {
        "stem": 12, "inner": 12, "outer": 12, "head": 5
    }  # fmt: skip
    with pytest.raises(PruningRefused, match=r"names \['head', 'norm'\].* layers that can .*: stem = outer, inner"):
        pruned(Residual(), images(), ratios={"head": 0.5, "norm": 0.5})
    with pytest.raises(PruningRefused, match="lose the same channels; give one ratio to one of them"):
        pruned(Residual(), images(), ratios={"stem": 0.5, "outer": 0.25})
    with pytest.raises(PruningRefused, match=r"prune.ratios would leave no channel in 'inner'"):
        pruned(Residual(), images(), ratios={"inner": 0.99})
    with pytest.raises(PruningRefused, match=r"prune.ratios removed nothing"):
        pruned(Residual(), images(), ratios={"inner": 0.0, "stem": 0.0})


@pytest.mark.parametrize("steps", [1, 3])
def test_a_ratio_removes_the_very_number_it_says(steps: int) -> None:
    for width in (7, 10, 16, 20, 60):
        for keep in range(1, width + 1):
            model = Flat(width)
            found = ChannelPruner(model, rows(), ratio=0.5, ratios={"first": 1 - keep / width}, steps=steps)
            for _ in range(steps):
                found.step()
            assert found.widths()["first"] == keep
            if width > 10 and keep > 3:
                break


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("round_to", [1, 4])
def test_a_tenth_is_left_of_plain_residual_and_depthwise_networks(family: str, round_to: int) -> None:
    model = net(family)
    pruner = ChannelPruner(model, images(), ratio=0.5)
    groups = {group.name: group for group in pruner.groups()}
    keep = {name: -(-group.width // (10 * round_to)) * round_to for name, group in groups.items()}
    ratios = {name: 1 - keep[name] / group.width for name, group in groups.items()}
    model = net(family)
    pruner = pruned(model, images(), ratios=ratios, round_to=round_to)
    widths = pruner.widths()
    assert all(widths[layer] == keep[name] for name, group in groups.items() for layer in group.layers)
    assert model(**images()).shape == (4, 5) and min(widths.values()) >= 1
    rebuilt = net(family, seed=3)
    apply_plan(rebuilt, images(), json.loads(json.dumps(pruner.plan)))
    rebuilt.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(model.eval()(**images()), rebuilt.eval()(**images()))


def test_groups_are_named_after_their_first_layer_and_rank_their_channels() -> None:
    torch.manual_seed(0)
    model = Residual()
    with torch.no_grad():
        for weight in (model.stem.weight, model.outer.weight, model.norm.weight):
            weight[[3, 5]] *= 1e-4
        model.inner.weight[:, [3, 5]] *= 1e-4
        model.head.weight[:, [3, 5]] *= 1e-4
    first, second = ChannelPruner(model, images(), ratio=0.5).groups()
    assert (first.name, first.layers, first.width, second.name) == ("stem", ("stem", "outer"), 16, "inner")
    assert first.removed(14) == {3, 5} and first.removed(16) == set()
    assert {(m.module, m.outputs) for m in first.members} == {
        ("stem", True), ("norm", True), ("outer", True), ("inner", False), ("head", False)
    }  # fmt: skip
    grouped = {group.name: group for group in ChannelPruner(Depthwise(), images(), ratio=0.5).groups()}["body.5"]
    assert (grouped.width, grouped.parts) == (12, 4)
    assert len(grouped.removed(8)) == 4 and {channel // 3 for channel in grouped.removed(8)} == {0, 1, 2, 3}


def test_frozen_parameters_are_pruned_and_stay_frozen() -> None:
    model = Flat()
    model.first.requires_grad_(False)
    assert pruned(model, rows()).widths()["first"] == 5
    assert not model.first.weight.requires_grad and model.second.weight.requires_grad


@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_ratio_that_empties_a_layer_is_refused(scope: Scope) -> None:
    torch.manual_seed(0)
    model = Flat()
    if scope == "global":
        with torch.no_grad():
            model.first.weight *= torch.tensor([100.0] * 9 + [99.0])[:, None]
            model.second.weight *= torch.tensor([1e3] + [1e-3] * 9)[:, None]
    with pytest.raises(PruningRefused, match=r"ratio 0.95.* leave no channel in '(first|second)' \(10 channels\)"):
        pruned(model, rows(), ratio=0.95, scope=scope)
    with pytest.raises(PruningRefused, match="with round_to 16 would leave no channel"):
        pruned(Flat(), rows(), round_to=16)


def test_what_cannot_be_traced_is_refused_with_the_module() -> None:
    with pytest.raises(PruningRefused, match=r"none of its layers \['first'\] was reached.* stops in module 'stop'"):
        pruned(Stopped(), rows())
    with pytest.raises(
        PruningRefused, match=r"'\w+' cannot be narrowed: in 'the model itself' \(FixedSize\) at test_prune"
    ):
        pruned(FixedSize(), rows(), ratio=0.3)


def test_batchnorm_is_measured_again_and_nothing_else_changes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.9))
    before = {k: v.clone() for k, v in model[0].state_dict().items()}
    batches = [torch.rand(50, 6) * 3 for _ in range(8)]
    wrapped = _ByName(model)
    wrapped.train()
    assert reestimate_batchnorm(wrapped, [{"image": b} for b in batches]) == 1
    hidden = model[0](torch.cat(batches))
    assert isinstance(model[1], nn.BatchNorm1d) and model[1].running_mean is not None
    torch.testing.assert_close(model[1].running_mean, hidden.mean(0))
    assert model[1].momentum == 0.1 and wrapped.training
    assert all(torch.equal(v, before[k]) for k, v in model[0].state_dict().items())
    assert reestimate_batchnorm(Flat(), [rows()]) == 0


class _ByName(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        answer: Tensor = self.net(image)
        return answer
