"""Allocation's measurements: structures, damages, layer graphs and tables are what they say they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from narrow_nets import FAMILIES, Net, net
from torch import Tensor, nn

from tasks.allocate.costs import Costs, Table, axes
from tasks.allocate.ladder import climb_down, damage_at
from tasks.allocate.latency import measure_table
from tasks.allocate.layer_graph import empty_graph, entrance_graph, layer_graph
from tasks.allocate.layer_shapes import read_structure
from tasks.allocate.layer_timing import time_in_turn
from tasks.allocate.sensitivity import measure_damage
from tasks.allocate.structure import Structure, WidthGroup, Work
from tasks.running.stage import WorkloadRef
from tasks.torch_models.channel_groups import ChannelGroup
from tasks.torch_models.channel_pruner import ChannelPruner
from tasks.torch_models.fit_rows import Rows
from tasks.torch_models.objective import soft_target_loss
from tasks.workloads.workload import Workload

pytestmark = pytest.mark.slow  # trains or exports real networks

CONV = Work(operator="Conv", size=(6, 6), kernel=(3, 3), stride=(1, 1), pads=(1, 1, 1, 1), dilation=(1, 1))


class Joined(nn.Module):
    """Two convolutions side by side, concatenated; a token-wise linear layer, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3, padding="same")
        self.right = nn.Conv2d(3, 4, 1)
        self.tokens = nn.Linear(12, 12)
        self.head = nn.Linear(12, 2)

    def forward(self, image: Tensor) -> Tensor:
        joined = torch.cat([torch.relu(self.left(image)), torch.relu(self.right(image))], dim=1)
        tokens = torch.relu(self.tokens(torch.relu(self.tokens(joined.flatten(2).transpose(1, 2)))))
        answer: Tensor = self.head(tokens.mean(dim=1))
        return answer


def images(count: int = 4) -> dict[str, Tensor]:
    return {"image": torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))}


def read(model: nn.Module, *, round_to: int = 1) -> tuple[Structure, list[ChannelGroup]]:
    pruner = ChannelPruner(model, images(), ratio=0.5)
    groups = pruner.groups()
    return read_structure(model, images(), groups, pruner.outputs, min_keep=0.1, round_to=round_to), groups


def rows(count: int = 64) -> Rows:
    columns = {"image": images(count)["image"].numpy(), "target": np.arange(count) % 5}
    return Rows(Workload(object(), WorkloadRef(path="m:C")), columns, torch.device("cpu"))


def made_up_table(structure: Structure, kind: str = "fp32") -> Table:
    """A layer takes as long as inputs times outputs."""
    choices = {group.name: group.choices(16) for group in structure.groups}
    timings = []
    for layer in structure.layers:
        inputs, outputs = axes(structure, layer, choices)
        ms = [[float(max(i, 1) * o) for o in outputs] for i in inputs]
        timings.append({"work": layer.work, "inputs": inputs, "outputs": outputs, "ms": ms})
    found = {"choices": choices, "timings": timings, "entrance_ms": 1.0, "kind": kind, "batch": 1, "threads": 1}
    return Table.model_validate(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_structure_predicts_the_widths_that_pruning_leaves(family: str) -> None:
    structure, _ = read(net(family))
    keep = {group.name: group.lowest for group in structure.groups}
    model = net(family)
    pruner = ChannelPruner(
        model, images(), ratio=0.5, ratios={n: 1 - k / structure.group(n).width for n, k in keep.items()}
    )
    pruner.step()
    modules = dict(model.named_modules())
    for layer in structure.layers:
        module = modules[layer.name]
        inputs, outputs = structure.widths(layer, keep)
        if isinstance(module, nn.Conv2d):
            assert (inputs, outputs) == (module.in_channels, module.out_channels)
            assert layer.work.depthwise is (module.groups > 1)
        else:
            assert isinstance(module, nn.Linear)
            assert (inputs, outputs) == (module.in_features, module.out_features)
        assert structure.widths(layer, structure.full()) == (layer.inputs, layer.outputs)
    assert structure.layers[-1].work.last and not structure.layers[0].work.last


def test_concatenations_tokens_and_repeated_calls_are_seen() -> None:
    structure, _ = read(Joined())
    layers = {layer.name: layer for layer in structure.layers}
    assert layers["left"].work.pads == (1, 1, 1, 1) and layers["left"].work.size == (8, 8)
    assert layers["tokens"].work == Work(operator="MatMul", size=(64,)) and layers["tokens"].calls == 2
    assert layers["head"].work.operator == "Gemm"
    wide = {group.name: group.width for group in structure.groups}
    assert structure.widths(layers["tokens"], {**wide, structure.groups[0].name: 1})[0] < 12
    costs = Costs(structure, made_up_table(structure))
    assert costs.ms(wide) == 1.0 + 3 * 8 + 3 * 4 + 2 * 144 + 24


def test_groups_offer_widths_that_kernels_like() -> None:
    assert WidthGroup(name="g", layers=(), width=16, lowest=2).choices(16) == tuple(range(16, 1, -1))
    assert WidthGroup(name="g", layers=(), width=96, lowest=10).choices(8) == (96, 80, 64, 48, 32, 16, 10)
    assert WidthGroup(name="g", layers=(), width=24, unit=8, lowest=8).choices(16) == (24, 16, 8)
    group = WidthGroup(name="g", layers=(), width=20, unit=4, lowest=4)
    assert [group.nearest(share) for share in (0.01, 0.5, 0.76, 0.99)] == [4, 8, 16, 20]
    structure, _ = read(net("mobile"), round_to=8)
    assert [(group.unit, group.lowest, group.width) for group in structure.groups] == [
        (8, 8, 8), (8, 8, 24), (8, 8, 16), (8, 8, 48)
    ]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_damage_is_that_of_really_removing_the_channels(family: str) -> None:
    model, asked = net(family), rows()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    structure, groups = read(model)
    pruner = ChannelPruner(model, images(), ratio=0.5)
    chosen = structure.groups[1]
    keep = chosen.width // 2
    found = measure_damage(
        pruner,
        asked,
        groups,
        {group.name: [group.width // 2, group.lowest] for group in structure.groups},
        task="classes",
        progress=lambda fraction, text: None,
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if "num_b" not in name)
    assert not model.training and set(found) == {group.name for group in structure.groups}
    assert all(0 < wide[1] <= narrow[1] for wide, narrow in found.values())
    ratios = {group.name: 0.0 for group in structure.groups} | {chosen.name: 0.5}
    pruned = net(family)
    ChannelPruner(pruned, images(), ratio=0.5, ratios=ratios).step()
    inputs = asked(torch.arange(64), None).inputs
    answers = [with_batch_statistics(each)(**inputs) for each in (pruned, net(family))]
    wanted = soft_target_loss(*answers, temperature=2.0) / 4
    assert dict(found[chosen.name])[keep] == pytest.approx(float(wanted.detach()), rel=1e-3)


def with_batch_statistics(model: Net) -> Net:
    for module in model.eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    return model


def test_the_damage_of_a_regression_is_a_share_of_its_variance() -> None:
    model = net("vgg", classes=1)
    structure, groups = read(model)
    pruner = ChannelPruner(model, images(), ratio=0.5)
    keeps = {group.name: [group.lowest] for group in structure.groups}
    found = measure_damage(pruner, rows(), groups, keeps, task="regression", progress=lambda fraction, text: None)
    assert all(0 < damage < 100 for ((_, damage),) in found.values())
    assert damage_at([(8, 1.0), (2, 4.0)], 16, 16) == 0.0
    assert [damage_at([(8, 1.0), (2, 4.0)], 16, keep) for keep in (12, 8, 5, 2, 1)] == [0.5, 1.0, 2.5, 4.0, 4.0]


@pytest.mark.parametrize(
    ("work", "operators"),
    [
        (CONV, {"QLinearConv"}),
        (CONV.model_copy(update={"depthwise": True}), {"QLinearConv"}),
        (CONV.model_copy(update={"groups": 2, "stride": (2, 2)}), {"QLinearConv"}),
        (CONV.model_copy(update={"operator": "ConvTranspose"}), {"ConvTranspose", "Relu"}),
        (Work(operator="Gemm"), {"QGemm"}),
        (Work(operator="Gemm", last=True), {"QGemm"}),
        (Work(operator="MatMul", size=(5,)), {"MatMulIntegerToFloat", "Relu"}),
    ],
)
@pytest.mark.parametrize("int8", [True, False])
def test_layer_graphs_run_as_layers_do_in_a_network(
    work: Work, operators: set[str], int8: bool, tmp_path: Path
) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    graph = layer_graph(work, 8, 8, int8=int8)
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    quantized = int8 and work.operator not in ("ConvTranspose", "MatMul")
    assert given.type == ("tensor(uint8)" if quantized else "tensor(float)")
    answer = session.run(None, {"x": np.ones((2, *given.shape[1:]), np.uint8 if quantized else np.float32)})[0]
    assert answer.size == 2 * 8 * (9 if work.stride == (2, 2) else int(np.prod(work.size or (1,))))
    found = {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}
    if int8:
        assert operators <= found and not {"DequantizeLinear", "Transpose", "Reshape"} & found
    assert all(
        ms > 0 for ms in time_in_turn([empty_graph(), entrance_graph(12, int8=int8)], batch=2, threads=1, seconds=0)
    )


@pytest.mark.parametrize("int8", [True, False])
def test_a_table_has_every_width_that_may_be_chosen(int8: bool) -> None:
    structure, _ = read(net("mobile"))
    told: list[float] = []
    table = measure_table(
        structure,
        int8=int8,
        batch=1,
        threads=1,
        seconds=0.5,
        progress=lambda fraction, text: told.append(fraction),
    )
    assert told == sorted(told) and table.kind == ("int8" if int8 else "fp32")
    costs = Costs(structure, table)
    for keep in (structure.full(), {group.name: group.lowest for group in structure.groups}):
        assert costs.ms(keep) >= table.entrance_ms > 0
        assert all(keep[name] in choices for name, choices in table.choices.items())
    assert sum(ms for timing in table.timings for row in timing.ms for ms in row) > 0
    assert Table.model_validate_json(table.model_dump_json()) == table


def test_bytes_are_those_of_the_weights() -> None:
    structure, _ = read(net("resnet"))
    model = net("resnet")
    weights = sum(p.numel() for name, p in model.named_parameters() if "norm" not in name)
    small, large = (Costs(structure, made_up_table(structure, kind)) for kind in ("int8", "fp32"))
    full = structure.full()
    assert weights < small.bytes(full) < 1.8 * weights
    assert 4 * weights < large.bytes(full) < 4.4 * weights
    assert small.bytes({group.name: group.lowest for group in structure.groups}) < 0.5 * small.bytes(full)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_rung_of_a_ladder_can_be_pruned(family: str) -> None:
    structure, groups = read(net(family))
    table = made_up_table(structure, "int8")
    costs = Costs(structure, table)
    damages = {g.name: [(g.width // 2, 1.0 + n), (g.lowest, 4.0)] for n, g in enumerate(structure.groups)}
    targets = (0.7, 0.35, 0.12, 0.001)
    for objective in ("latency", "size"):
        ladder = climb_down(structure, table, costs, damages, objective=objective, targets=targets)
        whole = costs.ms(structure.full()) if objective == "latency" else costs.bytes(structure.full())
        assert [rung["target"] for rung in ladder] == list(targets)
        assert ladder[0]["reached"] is True and ladder[-1]["reached"] is False
        for rung in ladder:
            spent = rung["predicted_ms" if objective == "latency" else "predicted_bytes"]
            assert not rung["reached"] or spent <= rung["target"] * whole + 1
            assert rung["ratios"].keys() == structure.full().keys()
    for rung in ladder:
        model = net(family)
        pruner = ChannelPruner(model, images(), ratio=0.5, ratios=rung["ratios"])
        pruner.step()
        widths = pruner.widths()
        assert all(widths[layer] == rung["keep"][g.name] for g in groups for layer in g.layers)
        assert model(**images()).shape == (4, 5)
