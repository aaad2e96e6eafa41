"""Channels-last training on a CPU: while it lasts, only where a model takes it, and the same bits after a kill."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from patience import PATIENCE
from torch import Tensor, nn

from tasks.torch_models.fit import fit
from tasks.torch_models.fit_layout import channels_last, match_layout
from tasks.torch_models.fit_rows import predict
from tasks.torch_models.torch_variant import build
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData
from tasks.workloads.resnet import ResNet20

if TYPE_CHECKING:
    from taught_workloads import taught
    from test_fit import Memory, assert_same, run
else:  # tests/ is no package at run time
    from taught_workloads import taught
    from test_fit import Memory, assert_same, run


class Viewing(nn.Module):
    """Flattens with ``view``, which needs contiguous features."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
        self.head = nn.Linear(4 * 64, 2)

    def forward(self, image: Tensor) -> Tensor:
        hidden = torch.relu(self.convs(image))
        answer: Tensor = self.head(hidden.view(hidden.shape[0], -1))
        return answer


def contiguous(model: nn.Module) -> bool:
    return all(p.is_contiguous() for p in model.parameters())


def last(model: nn.Module) -> bool:
    return all(p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4)


def test_it_lasts_as_long_as_training_and_changes_no_answer() -> None:
    model = ResNet20((3, 16, 16), 5, width=0.5).eval()
    inputs = {"image": torch.rand(4, 3, 16, 16)}
    before = model(**inputs)
    with pytest.raises(KeyboardInterrupt), channels_last(model, inputs) as used:
        assert used and last(model) and not contiguous(model)
        torch.testing.assert_close(model(**inputs), before)
        raise KeyboardInterrupt
    assert contiguous(model)
    assert torch.equal(model(**inputs), before)


def test_one_within_another_changes_nothing() -> None:
    """A training judges its model after each epoch, and goes on in the layout it had."""
    model = ResNet20((3, 16, 16), 5, width=0.5).eval()
    inputs = {"image": torch.rand(4, 3, 16, 16)}
    with channels_last(model, inputs), channels_last(model, inputs) as used:
        assert used and last(model)
    with channels_last(model, inputs):
        with channels_last(model, inputs):
            pass
        assert last(model) and not contiguous(model)
    assert contiguous(model)


def test_a_model_answers_in_this_layout_and_leaves_it() -> None:
    workload = taught("Squares")
    model = build(workload, "teacher", {}, seed=3)
    seen: list[bool] = []
    model.register_forward_pre_hook(lambda *_: seen.append(last(model)))
    columns = workload.splits()["validation"]
    outputs = predict(model, workload=workload, columns=columns, device="cpu")
    assert len(seen) > 2 and all(seen[1:]) and contiguous(model)
    with torch.no_grad():
        whole = model(**workload.preprocess({"image": torch.from_numpy(columns["image"])}))
    torch.testing.assert_close(torch.from_numpy(outputs), whole)


def test_a_model_that_views_its_features_stays_as_it_is() -> None:
    model = Viewing()
    with channels_last(model, {"image": torch.rand(2, 1, 8, 8)}) as used:
        assert not used and contiguous(model)
    workload = taught("Squares")
    _, fitted = run(workload, model=model, epochs=3)
    assert fitted.val_metric > 0.7


def test_models_without_convolutions_are_left_alone() -> None:
    with channels_last(build(taught("Blobs"), "teacher", {}), {"features": torch.rand(2, 4)}) as used:
        assert not used


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_killed_training_of_convolutions_goes_on_bit_for_bit(optimizer: str) -> None:
    """The checkpoint is contiguous: fused optimizers would mix up weights if its state stayed so."""
    workload = taught("Squares")
    arguments: dict[str, Any] = {"scale": {"width": 0.25}, "optimizer": optimizer, "learning_rate": 1e-2}
    whole, fitted = run(workload, **arguments)
    memory = Memory(kill_at=2)
    with pytest.raises(KeyboardInterrupt):
        run(workload, checkpoints=memory, **arguments)
    again, resumed = run(workload, checkpoints=Memory(data=memory.data), **arguments)
    assert (resumed.resumed_at, resumed.history) == (2, fitted.history)
    assert_same(again, whole)
    assert contiguous(again)


def test_state_takes_the_layout_of_its_parameter() -> None:
    conv = nn.Conv2d(3, 4, 3)
    conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(conv.parameters())
    conv(torch.rand(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    kept = {name: value.contiguous() for name, value in optimizer.state[conv.weight].items()}
    optimizer.state[conv.weight].update(kept)
    match_layout(optimizer)
    found = optimizer.state[conv.weight]["exp_avg"]
    assert found.stride() == conv.weight.stride() != kept["exp_avg"].stride()
    assert torch.equal(found, kept["exp_avg"])


def test_layouts_learn_the_same_but_for_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = taught("Squares")
    splits = workload.splits()
    losses = []
    for _ in range(2):
        model = build(workload, "student", {"width": 0.25}, seed=2)
        data = TrainingData(workload, splits["train"], splits["validation"])
        training = Training(epochs=2, batch_size=32, learning_rate=1e-3)
        losses.append(fit(model, data, training, device="cpu").val_loss)
        monkeypatch.setattr("tasks.torch_models.fit.channels_last", lambda *_: contextlib.nullcontext())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


class Narrow(nn.Module):
    """A shortcut of four channels that steps over every other place, as narrowing leaves it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.shortcut = nn.Conv2d(4, 8, 1, stride=2, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        answer: Tensor = self.shortcut(self.first(image)).mean((2, 3))
        return answer


@pytest.mark.slow
def test_the_gradient_of_a_narrow_shortcut_is_right_with_every_instruction_set() -> None:
    """oneDNN writes past its workspace there; in a process of its own, since the instruction set is chosen once."""
    code = f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
        import torch
        from test_fit_layout import Narrow
        from tasks.torch_models.fit_layout import channels_last
        torch.manual_seed(0)
        model, image = Narrow(), torch.randn(32, 3, 32, 32)
        def gradient(image):
            model.zero_grad()
            model(image).square().sum().backward()
            return model.shortcut.weight.grad.double()
        plain = gradient(image)
        with channels_last(model, {{"image": image}}) as used:
            assert used and model.shortcut.stride == (1, 1)
            torch.testing.assert_close(gradient(image), plain, rtol=1e-4, atol=1e-6)
        assert model.shortcut.stride == (2, 2)
        print("right")
    """
    for most in ("AVX2", "ALL"):
        environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": most}
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.stdout.split() == ["right"], done.stderr
