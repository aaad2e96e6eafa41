"""Accuracy control: it finds the layers that ruin int8, those only, and says what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from depthwise_models import Chain, images
from numpy.typing import NDArray

from model_registry.cpu_class import cpu_class, sums_saturate
from tasks.quantize.accuracy_control import Controlled, control_accuracy, most_different
from tasks.quantize.agreement import top_answers
from tasks.quantize.int8_dynamic import quantize_dynamically
from tasks.quantize.int8_share import int8_share
from tasks.quantize.layer_groups import LayerGroup, layer_groups
from tasks.quantize.metric_drop import drop_of_agreement, drop_of_metric
from tasks.quantize.prepared_graph import prepare
from tasks.quantize.static_recipe import static_recipe
from tasks.quantize.weight_only import quantize_weights
from tasks.running.errors import CalibrationError, ParityFailed
from tasks.running.splits import DataRef, MetricRef
from tasks.running.stage import WorkloadRef

SHAPES = {"image": (1, 3, 8, 8)}
WORKLOAD = WorkloadRef(path="nowhere:Nothing")


def ruined() -> bytes:
    """The third layer has one huge weight per output, on a channel that is always zero: all others round to zero."""
    chain = Chain(3, 8).conv(8, 3, 3).add("Relu").conv(8, 8, 3).add("Relu").conv(8, 8, 3).add("Relu")
    chain.conv(8, 8, 3).add("Relu").add("Flatten").gemm(10, 512)
    chain.weights["w2b"][0] = -1e3
    chain.weights["w4"][:, 0] = 200.0
    return chain.file()


def data(metric: str = "accuracy") -> DataRef:
    better: Any = "higher" if metric == "accuracy" else "lower"
    return DataRef(
        fingerprint="f" * 64,
        splits=(),
        columns={},
        task="classes",
        metric=MetricRef(name=metric, better=better, builtin=True),
    )


def test_exactly_the_layer_that_ruins_int8_stays_in_fp32(tmp_path: Path) -> None:
    file = ruined()
    prepared = prepare(file, tmp_path)
    validation = images(256, seed=7)
    parent = top_answers(file, validation)
    build, _ = static_recipe(
        prepared,
        images(),
        top_answers(file, images()),
        tmp_path,
        method="minmax",
        percentile=99.9,
        per_channel=True,
        reduce_range=sums_saturate(cpu_class()),
        activations="uint8",
        correct_biases=False,
    )

    def predict(excluded: frozenset[str], rows: NDArray[np.int64] | None) -> NDArray[Any]:
        chosen = validation if rows is None else {n: v[rows] for n, v in validation.items()}
        return top_answers(build(excluded).SerializeToString(), chosen)

    drop = drop_of_metric(data(), WORKLOAD, parent, parent.argmax(axis=1))
    groups = layer_groups(prepared, SHAPES)
    found = control_accuracy(groups, predict=predict, parent=parent, drop=drop, max_drop=0.05, samples=100)
    assert found.fp32_groups == ("Conv w4 [8, 8, 3, 3]",)
    assert found.steps[0].phase == "int8" and found.steps[0].drop > 0.2 and found.drop <= 0.05
    assert [(s.phase, s.group, s.kept) for s in found.steps[1:]] == [("to fp32", "Conv w4 [8, 8, 3, 3]", True)]
    convolutions = 64 * 9 * (3 * 8 + 3 * 64)
    assert found.fp32_share == pytest.approx(64 * 9 * 64 / (convolutions + 5120))
    share = int8_share(prepared, build(found.excluded), SHAPES)
    assert share.fp32_layers == found.fp32_groups and share.quantized == 4


@pytest.mark.parametrize("form", ["dynamic", "weights8", "weights4"])
def test_excluded_layers_stay_as_they_are_in_every_form(tmp_path: Path, form: str) -> None:
    chain = Chain(3, 8).conv(8, 3, 3).add("Relu").add("Flatten").gemm(64, 512).add("Relu").gemm(10, 64)
    file = chain.file()
    prepared = prepare(file, tmp_path)
    groups = layer_groups(prepared, SHAPES)
    assert [(len(g.nodes), g.before) for g in groups] == [(3, ()), (2, (0,)), (1, (1,))]
    out = groups[1].nodes
    if form == "dynamic":
        made = quantize_dynamically(prepared, per_channel=True, reduce_range=sums_saturate(cpu_class()), excluded=out)
    else:
        made = quantize_weights(prepared, bits=int(form[-1]), excluded=out)
    share = int8_share(prepared, made, SHAPES)
    assert groups[1].name in share.fp32_layers and groups[2].name not in share.fp32_layers


def group(name: str, macs: int, *before: int) -> LayerGroup:
    return LayerGroup(name, frozenset({name}), macs, before)


class World:
    """Answers of a pretended model: each group in int8 adds its own error to its own output."""

    def __init__(self, errors: dict[str, float], joint: tuple[str, str, float] | None = None) -> None:
        self.errors, self.joint = errors, joint
        self.parent = np.ones((50, len(errors) + 1))
        self.calls = 0

    def predict(self, excluded: frozenset[str], rows: NDArray[np.int64] | None) -> NDArray[Any]:
        self.calls += 1
        found = self.parent.copy()
        for place, (name, error) in enumerate(self.errors.items()):
            found[:, place] += 0.0 if name in excluded else error
        if self.joint and not {self.joint[0], self.joint[1]} <= excluded:
            found[:, -1] += self.joint[2]
        return found if rows is None else found[rows]

    def drop(self, outputs: NDArray[Any]) -> float:
        return float(np.abs(outputs - self.parent).sum(axis=1).mean())

    def control(self, groups: list[LayerGroup], max_drop: float) -> Controlled:
        return control_accuracy(
            groups, predict=self.predict, parent=self.parent, drop=self.drop, max_drop=max_drop, samples=10
        )


def test_nothing_is_tried_within_the_budget() -> None:
    world = World({"a": 0.1, "b": 0.1})
    found = world.control([group("a", 5), group("b", 5, 0)], 0.5)
    assert found.excluded == frozenset() and found.fp32_share == 0.0 and world.calls == 1


def test_groups_go_back_to_int8_where_the_budget_allows_the_dearest_first() -> None:
    groups = [group("a", 100), group("b", 10, 0), group("c", 1, 1)]
    found = World({"a": 0.30, "b": 0.32, "c": 0.31}).control(groups, 0.62)
    assert [(s.phase, s.group, s.kept) for s in found.steps[1:]] == [("to fp32", "b", True)]
    found = World({"a": 0.30, "b": 0.31, "c": 0.29}).control(groups, 0.30)
    assert [(s.phase, s.group, s.kept) for s in found.steps[1:]] == [
        ("to fp32", "b", True), ("to fp32", "a", True), ("back to int8", "a", False), ("back to int8", "b", False),
    ]  # fmt: skip
    assert found.fp32_share == pytest.approx(110 / 111) and found.drop == pytest.approx(0.29)
    # The outputs of a differ most, but the metric does not look at them: a comes out first, and goes back.
    world = World({"a": 0.9, "b": 0.3, "c": 0.2})
    found = control_accuracy(
        groups,
        predict=world.predict,
        parent=world.parent,
        drop=lambda outputs: world.drop(np.where(np.arange(4) == 0, world.parent, outputs)),
        max_drop=0.25,
        samples=10,
    )
    assert [(s.phase, s.group, s.kept) for s in found.steps[1:]] == [
        ("to fp32", "a", True), ("to fp32", "b", True), ("back to int8", "a", True), ("back to int8", "b", False),
    ]  # fmt: skip
    assert found.fp32_groups == ("b",) and found.fp32_share == pytest.approx(10 / 111)


def test_a_tensor_that_must_not_be_rounded_takes_out_both_its_ends() -> None:
    groups = [group("a", 1), group("b", 1, 0), group("c", 1, 1)]
    found = World({"a": 0.01, "b": 0.01, "c": 0.05}, joint=("a", "b", 1.0)).control(groups, 0.1)
    assert found.fp32_groups == ("a", "b")
    assert found.steps[1].group == "a with b"


def test_everything_may_end_in_fp32_and_a_metric_that_is_no_number_is_an_error() -> None:
    groups = [group("a", 1), group("b", 1, 0)]
    found = World({"a": 0.5, "b": 0.5}).control(groups, 0.0)
    assert found.fp32_groups == ("a", "b") and found.drop == 0.0 and found.fp32_share == 1.0
    world = World({"a": 0.5, "b": 0.5})
    with pytest.raises(ParityFailed, match="the metric's drop is nan after all layers in int8"):
        control_accuracy(
            groups, predict=world.predict, parent=world.parent, drop=lambda _: float("nan"), max_drop=0.1, samples=5
        )


def test_the_drop_is_the_metrics_or_the_share_of_changed_answers() -> None:
    parent = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    other = parent[:, ::-1].copy()
    other[0] = parent[0]
    assert drop_of_metric(data(), WORKLOAD, parent, np.array([0, 1, 0, 0]))(other) == pytest.approx(0.75 - 0.5)
    assert drop_of_metric(data("mse"), WORKLOAD, parent, parent)(other) == pytest.approx(0.75)
    assert drop_of_agreement(parent)(other) == 0.75
    with pytest.raises(CalibrationError, match=r"outputs of shape \[4, 1\] have no arg max"):
        drop_of_agreement(parent[:, :1])
    with pytest.raises(ParityFailed, match="the fp32 model: mse of 2 of 4 samples is not a finite number"):
        drop_of_metric(data("mse"), WORKLOAD, np.where(parent == 1, np.nan, parent)[:, :1], parent[:, :1] * 0)
    outputs = parent.copy()
    outputs[2] += 5
    outputs[1] += np.nan
    assert most_different(parent, outputs, 2).tolist() == [1, 2]
