"""Hints: which layers belong together, what a hint costs, and that projectors are trained and thrown away."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from tasks.distill.hint_layers import attention_layers, matching_layers
from tasks.distill.hints import Hinted, hint_loss, hinted, relation_loss
from tasks.running.errors import SpecError
from tasks.torch_models.fit import Fitted, fit
from tasks.torch_models.objective import Hard, LiveAnswers, TrainingBatch, distillation
from tasks.torch_models.torch_variant import build
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData
from tasks.workloads.architectures import ImageClassifier, SimpleNet
from tasks.workloads.mobilenet import MobileNetClassifier
from tasks.workloads.resnet import ResNet20
from tasks.workloads.text_encoder import EncoderShape, TextEncoder
from tasks.workloads.vgg import VggClassifier

pytestmark = pytest.mark.slow  # trains or exports real networks

if TYPE_CHECKING:
    from taught_workloads import taught
    from test_fit import Memory, assert_same
else:  # tests/ is no package at run time
    from taught_workloads import taught
    from test_fit import Memory, assert_same

IMAGES = {"image": torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


def test_a_hint_measures_the_angle_between_features() -> None:
    one = torch.rand(3, 4, 4, 2)
    assert float(hint_loss(5 * one, one)) == pytest.approx(0, abs=1e-6)
    assert float(hint_loss(-one, one)) == pytest.approx(4, rel=1e-5)
    axes = torch.eye(2)
    assert float(hint_loss(axes, axes.flip(0))) == pytest.approx(2, rel=1e-6)


def test_larger_features_are_averaged_down() -> None:
    large, small = torch.rand(3, 7, 8, 2), torch.rand(3, 3, 4, 2)
    pooled = nn.functional.adaptive_avg_pool2d(large.movedim(-1, 1), (3, 4)).movedim(1, -1)
    assert float(hint_loss(large, small)) == pytest.approx(float(hint_loss(pooled, small)), rel=1e-5)
    assert float(hint_loss(small, large)) == pytest.approx(float(hint_loss(small, pooled)), rel=1e-5)
    with pytest.raises(SpecError, match="student with 2 spatial dimensions and of the teacher with 0"):
        hint_loss(large, torch.rand(3, 2))


def test_layers_are_matched_by_the_last_one_of_each_resolution() -> None:
    vgg, resnet, mobile = (n((3, 32, 32), 5, width=0.1) for n in (VggClassifier, ResNet20, MobileNetClassifier))
    assert matching_layers(vgg, resnet, IMAGES) == [
        ("stages.0", "stages.0"),
        ("stages.1", "stages.1"),
        ("stages.2", "stages.2"),
    ]
    assert matching_layers(vgg, mobile, IMAGES)[-1] == ("stages.3", "last")
    assert matching_layers(vgg, vgg, IMAGES)[-2:] == [("stages.3", "stages.3"), ("dense", "dense")]
    small = ImageClassifier((3, 32, 32), 5)
    assert matching_layers(small, vgg, IMAGES) == [
        ("norm1", "stages.0"),
        ("norm2", "stages.1"),
        ("dense", "dense"),
    ]


def test_blocks_that_change_the_resolution_hide_their_insides() -> None:
    """At 32x32 the widened layer of the first halving block is the last one, and no feature of that stage."""
    mobile = MobileNetClassifier((3, 32, 32), 5, width=0.25)
    pairs = matching_layers(mobile, mobile, IMAGES)
    assert [name for name, _ in pairs] == ["stages.0", "stages.1", "stages.2", "last"]


def test_dense_networks_are_matched_before_their_head_and_strangers_not_at_all() -> None:
    rows = {"features": torch.rand(2, 4)}
    assert matching_layers(SimpleNet((4,), 3), SimpleNet((4,), 3, width=0.5), rows) == [("dense2", "dense2")]

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4, 5)

        def forward(self, image: Tensor) -> Tensor:
            answer: Tensor = self.head(self.conv(image).mean((2, 3)))
            return answer

    with pytest.raises(SpecError, match=r"no layers of equal resolution: the teacher has stages.0 \(32x32\)"):
        matching_layers(ResNet20((3, 32, 32), 5, width=0.1), Reads(), IMAGES)


def teach(
    student: nn.Module, pairs: list[tuple[str, str]], *, memory: Memory | None = None, weight: float = 1.0
) -> tuple[Fitted, Hinted, list[Tensor]]:
    """Some epochs with hints; the objective with its projectors after training, and before."""
    workload = taught("Squares")
    teacher = build(workload, "teacher", {}, seed=3)
    splits = workload.splits()
    base = distillation(workload.loss, LiveAnswers(teacher), task="classes", temperature=2.0, alpha=0.5)
    images = {"image": torch.from_numpy(splits["train"]["image"][:2])}
    with hinted(base, teacher=teacher, student=student, pairs=pairs, weight=weight, inputs=images, seed=1) as goal:
        before = [parameter.detach().clone() for parameter in goal.parameters()]
        fitted = fit(
            student,
            TrainingData(workload, splits["train"], splits["validation"]),
            Training(epochs=3, batch_size=32, learning_rate=1e-2),
            objective=goal,
            device="cpu",
            checkpoints=memory,
        )
    assert not any(module._forward_hooks for model in (teacher, student) for module in model.modules())
    return fitted, goal, before


def student(seed: int = 0) -> nn.Module:
    return build(taught("Squares"), "student", {"width": 0.25}, seed=seed)


PAIRS = [("conv1", "conv1"), ("norm2", "norm1"), ("dense", "dense")]


def test_projectors_are_trained_along_and_no_part_of_the_student() -> None:
    model = student()
    names = list(model.state_dict())
    _, goal, before = teach(model, PAIRS)
    assert [tuple(p.shape) for p in before] == [(32, 8), (32,), (64, 8), (64,), (128, 32), (128,)]
    assert all(not torch.equal(now, then) for now, then in zip(goal.parameters(), before, strict=True))
    assert list(model.state_dict()) == names and len(names) > 5


def test_features_come_closer() -> None:
    def distance(model: nn.Module, weight: float) -> float:
        workload = taught("Squares")
        _, goal, _ = teach(model, PAIRS, weight=weight)
        teacher = build(workload, "teacher", {}, seed=3)
        columns = workload.splits()["validation"]
        inputs = {"image": torch.from_numpy(columns["image"]) / 16}
        batch = TrainingBatch(inputs, torch.from_numpy(columns["target"]), torch.arange(100))
        silent = distillation(workload.loss, LiveAnswers(teacher), task="classes", temperature=1.0, alpha=1.0)
        with (
            torch.no_grad(),
            hinted(silent, teacher=teacher, student=model, pairs=PAIRS, weight=1.0, inputs=inputs, seed=1) as fresh,
        ):
            fresh.load_state_dict(goal.state_dict())
            return float(fresh(model(**inputs), batch) - silent(model(**inputs), batch))

    assert distance(student(), 5.0) < 0.8 * distance(student(), 1e-6)


def test_a_killed_training_with_hints_goes_on_bit_for_bit() -> None:
    whole = student()
    fitted, goal, _ = teach(whole, PAIRS)
    memory = Memory(kill_at=2)
    with pytest.raises(KeyboardInterrupt):
        teach(student(), PAIRS, memory=memory)
    again = student()
    resumed, repeated, _ = teach(again, PAIRS, memory=Memory(data=memory.data))
    assert (resumed.resumed_at, resumed.history) == (2, fitted.history)
    assert_same(again, whole)
    assert_same(repeated, goal)


def test_wrong_names_are_told_with_those_there_are() -> None:
    with pytest.raises(SpecError, match=r"'conv9', which the teacher ImageClassifier does not have; it has conv1, "):
        teach(student(), [("conv9", "conv1")])
    with pytest.raises(SpecError, match=r"'conv8', which the student ImageClassifier does not have; it has conv1, "):
        teach(student(), [("conv1", "conv8")])
    with pytest.raises(SpecError, match="student with 0 spatial dimensions and of the teacher with 2"):
        teach(student(), [("conv1", "dense")])


def test_modules_that_answer_no_tensor_or_never_run_are_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = nn.LSTM(4, 3, batch_first=True)
            self.idle = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.pair(x)[0][:, -1]
            return answer

    rows = {"x": torch.rand(2, 5, 4)}
    base = Hard(nn.functional.cross_entropy)
    for name, reason in (("pair", "of the student answers tuple"), ("idle", "did not run in the forward pass")):
        with (
            pytest.raises(SpecError, match=reason),
            hinted(base, teacher=Odd(), student=Odd(), pairs=[(name, name)], weight=1.0, inputs=rows, seed=0),
        ):
            raise AssertionError("must not get here")


def test_relations_do_not_depend_on_widths_and_see_who_is_alike() -> None:
    torch.manual_seed(0)
    rows = torch.randn(3, 5, 24)
    assert float(relation_loss(rows, rows)) == pytest.approx(0, abs=1e-6)
    turns = torch.linalg.qr(torch.randn(12, 2, 2)).Q  # one of each head
    turned = torch.einsum("nlhd,hde->nlhe", rows.reshape(3, 5, 12, 2), turns).reshape(3, 5, 24)
    assert float(relation_loss(turned, rows)) == pytest.approx(0, abs=1e-5), "only products count"
    assert float(relation_loss(torch.randn(3, 5, 36), rows)) > 0.1
    by_hand = 0.0
    student = torch.randn(3, 5, 5)  # widths that share no divisor: one head
    for row in range(3):
        ours, theirs = ((v[row] @ v[row].T / v.shape[2] ** 0.5).softmax(1) for v in (student, rows))
        by_hand += float((theirs * (theirs / ours).log()).sum() / 15)
    assert float(relation_loss(student, rows)) == pytest.approx(by_hand, rel=1e-5)
    seen = torch.arange(5) < torch.tensor([[5], [3], [2]])
    cut = [float(relation_loss(student[r : r + 1, :n], rows[r : r + 1, :n])) * n for r, n in ((0, 5), (1, 3), (2, 2))]
    assert float(relation_loss(student, rows, seen)) == pytest.approx(sum(cut) / 10, rel=1e-5), (
        "filling counts for nothing"
    )
    with pytest.raises(SpecError, match=r"shapes \[3, 5, 24\] and \[3, 4, 24\]; both must be"):
        relation_loss(torch.randn(3, 4, 24), rows)


def test_a_narrower_encoder_learns_how_its_teacher_attends() -> None:
    torch.manual_seed(0)
    shape = EncoderShape(vocabulary=30, features=24, layers=2, heads=4, hidden=32, places=10, pad=0)
    small = replace(shape, features=12, heads=2, layers=1)
    teacher, student = TextEncoder(shape, 3).eval().requires_grad_(False), TextEncoder(small, 3)
    pairs = attention_layers(teacher, student)
    parts = ("query", "key", "value")
    assert pairs == [(f"layers.1.attention.{part}", f"layers.0.attention.{part}") for part in parts]
    tokens = {"tokens": torch.randint(1, 30, (8, 10))}
    batch = TrainingBatch(tokens, torch.randint(0, 3, (8,)), torch.arange(8))
    tokens["tokens"][:4, 7:] = 0  # filling
    base = distillation(nn.CrossEntropyLoss(), LiveAnswers(teacher), task="classes", temperature=2.0, alpha=1.0)
    how: dict[str, Any] = {"weight": 1.0, "inputs": tokens, "seed": 0, "of": "attention", "filling": {"tokens": (1, 0)}}
    with hinted(base, teacher=teacher, student=student, pairs=pairs, **how) as objective:
        assert list(objective.parameters()) == []
        optimizer, losses = torch.optim.AdamW(student.parameters(), lr=1e-2), list[float]()
        for _ in range(30):
            loss = objective(student(**tokens), batch) - base(student(**tokens), batch)
            losses.append(float(loss.detach()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert losses[-1] < losses[0] / 2
    assert attention_layers(teacher, SimpleNet((4,), 3)) == [], "it learns without hints"
    with pytest.raises(SpecError, match="none in the teacher SimpleNet: no module has the parts query, key, value"):
        attention_layers(SimpleNet((4,), 3), teacher)
