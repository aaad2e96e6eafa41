"""The training loop: it learns, stops, resumes bit for bit, and says what is wrong."""

from __future__ import annotations

import ast
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from patience import PATIENCE
from torch import Tensor, nn

from tasks.distill import DistillSpec
from tasks.qat import QatSpec
from tasks.running import errors
from tasks.running.errors import SpecError, StageOutOfMemory, TrainingDiverged, WorkloadError
from tasks.running.stage import Job, Parallel
from tasks.torch_models.fit import Fitted, _used, fit
from tasks.torch_models.fit_amp import amp_dtype
from tasks.torch_models.fit_checkpoint import unpack
from tasks.torch_models.fit_rows import evaluate, predict, torch_device
from tasks.torch_models.fit_state import history_jsonl
from tasks.torch_models.fit_threads import row_macs, worthwhile_threads
from tasks.torch_models.objective import TrainingBatch
from tasks.torch_models.torch_variant import build
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData
from tasks.torch_models.views import View, Views
from tasks.train import TrainSpec
from tasks.workloads.workload import Workload

if TYPE_CHECKING:
    from taught_workloads import reference, taught
else:  # tests/ is no package at run time
    from taught_workloads import reference, taught

DEFAULTS: dict[str, Any] = {"epochs": 4, "batch_size": 32, "learning_rate": 5e-3}
SETTINGS = {field.name for field in fields(Training)}


@dataclass
class Memory:
    """Checkpoints in memory; ``kill_at`` raises after that epoch was kept, as a killed process would end there."""

    kill_at: int = 0
    data: bytes | None = None
    saved: list[int] = field(default_factory=list)

    def save(self, epoch: int, make: Callable[[], bytes], *, last: bool) -> None:
        self.data = make()
        self.saved.append(epoch)
        if epoch == self.kill_at:
            raise KeyboardInterrupt

    def load(self) -> bytes | None:
        return self.data


def run(workload: Workload, *, seed: int = 0, **changes: Any) -> tuple[nn.Module, Fitted]:
    model = changes.pop("model", None) or build(workload, "teacher", changes.pop("scale", {}), seed=seed)
    splits = workload.splits() | {name: changes.pop(name) for name in ("train", "validation") if name in changes}
    data = TrainingData(workload, splits["train"], splits["validation"])
    training = Training(**{**DEFAULTS, **{name: changes.pop(name) for name in SETTINGS & changes.keys()}})
    return model, fit(model, data, training, seed=seed, **{"device": "cpu", **changes})


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_it_learns_and_reports_what_the_model_does() -> None:
    workload = taught("Blobs")
    told: list[tuple[float, str]] = []
    model, fitted = run(workload, epochs=8, progress=lambda fraction, text: told.append((fraction, text)))
    loss, metric, better = evaluate(model, workload=workload, columns=workload.splits()["validation"], device="cpu")
    assert better == "higher"
    assert metric > 0.7
    assert (fitted.val_loss, fitted.val_metric) == (loss, metric)
    assert not model.training
    assert [row["epoch"] for row in fitted.history] == list(range(1, 9))
    assert set(fitted.history[0]) == {"epoch", "train_loss", "val_loss", "val_metric", "lr"}
    assert fitted.history[-1]["train_loss"] < fitted.history[0]["train_loss"] / 2
    assert [fraction for fraction, _ in told] == sorted(fraction for fraction, _ in told)
    assert told[-1][0] == 1.0
    assert history_jsonl(fitted.history).count(b"\n") == 8


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize(("name", "arguments"), [("Blobs", {"dropout": 0.3}), ("NoisyBlobs", {}), ("Squares", {})])
def test_an_interrupted_training_ends_in_the_same_bits(name: str, arguments: dict[str, Any], optimizer: str) -> None:
    """With dropout (global generator), augmentation (its own), BatchNorm buffers and the optimizer's moments."""
    workload = taught(name, **arguments)
    whole, straight = run(workload, optimizer=optimizer)
    checkpoints = Memory(kill_at=2)
    with pytest.raises(KeyboardInterrupt):
        run(workload, optimizer=optimizer, checkpoints=checkpoints)
    checkpoints.kill_at = 0
    torch.rand(7)  # the process that goes on has another past
    resumed, fitted = run(workload, optimizer=optimizer, checkpoints=checkpoints)
    assert fitted.resumed_at == 2
    assert checkpoints.saved == [1, 2, 3, 4]
    assert fitted.history == straight.history
    assert fitted.summary() == straight.summary()
    assert straight.epoch_seconds is not None and straight.epoch_seconds > 0
    assert_same(whole, resumed)


def test_views_are_taken_in_turn_and_an_interrupted_training_sees_the_same() -> None:
    workload, views = taught("NoisyBlobs"), Views(3, seed=0)
    seen: list[tuple[int, bytes]] = []

    class Watched(nn.Module):
        """The loss, and which view each batch of an epoch was of."""

        def forward(self, outputs: Tensor, batch: TrainingBatch) -> Tensor:
            if batch.view is not None:
                first = dict(zip(batch.index.tolist(), batch.inputs["features"], strict=True)).get(0)
                seen.extend([(batch.view.number, first.numpy().tobytes())] if first is not None else [])
            return workload.loss(outputs, batch.targets)

    whole, straight = run(workload, objective=Watched(), views=views)
    assert [number for number, _ in seen] == [0, 1, 2, 0]
    assert len(set(seen)) == 3, "a view is the same each time it is seen"
    checkpoints = Memory(kill_at=2)
    with pytest.raises(KeyboardInterrupt):
        run(workload, objective=Watched(), views=views, checkpoints=checkpoints)
    checkpoints.kill_at = 0
    resumed, fitted = run(workload, objective=Watched(), views=views, checkpoints=checkpoints)
    assert (fitted.resumed_at, fitted.history) == (2, straight.history)
    assert_same(whole, resumed)
    assert run(workload, objective=Watched(), checkpoints=checkpoints)[1].resumed_at == 0


def test_a_view_is_the_same_whatever_generator_augmentation_uses() -> None:
    workload = taught("NoisyBlobs")
    columns = {name: torch.from_numpy(values) for name, values in workload.splits()["train"].items()}

    def careless(inputs: dict[str, Tensor], _generator: torch.Generator) -> dict[str, Tensor]:
        shift = torch.rand(1) + random.random() + np.random.rand()
        return {"features": inputs["features"] + shift}

    workload.user.augment = careless
    torch.manual_seed(1)
    first = View(0, 2).inputs(workload, columns)["features"]
    before = torch.rand(1), random.getstate(), np.random.rand()
    torch.manual_seed(1)
    np.random.seed(5)
    assert torch.equal(View(0, 2).inputs(workload, columns)["features"], first)
    assert not torch.equal(View(0, 1).inputs(workload, columns)["features"], first)
    assert torch.equal(torch.rand(1), before[0]) and random.getstate() == before[1]


def test_equal_seeds_give_equal_bits_and_others_do_not() -> None:
    workload = taught("Blobs", dropout=0.3)
    (one, _), (same, _), (other, _) = run(workload), run(workload), run(workload, seed=1)
    assert_same(one, same)
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_a_finished_training_is_not_repeated() -> None:
    workload, checkpoints = taught("Blobs"), Memory()
    model, fitted = run(workload, checkpoints=checkpoints)
    again, repeated = run(workload, checkpoints=checkpoints)
    assert checkpoints.saved == [1, 2, 3, 4]
    assert repeated.resumed_at == 4 and repeated.epoch_seconds == fitted.epoch_seconds
    assert repeated.history == fitted.history
    assert_same(model, again)


@pytest.mark.parametrize("change", [{"learning_rate": 1e-3}, {"seed": 5}, {"epochs": 5}, {"scale": {"width": 0.5}}])
def test_a_checkpoint_of_another_training_is_not_taken(change: dict[str, Any]) -> None:
    workload, checkpoints = taught("Blobs"), Memory()
    run(workload, checkpoints=checkpoints)
    assert run(workload, checkpoints=checkpoints, **change)[1].resumed_at == 0


def test_a_damaged_checkpoint_is_not_taken() -> None:
    workload, checkpoints = taught("Blobs"), Memory()
    run(workload, checkpoints=checkpoints)
    assert checkpoints.data is not None
    checkpoints.data = checkpoints.data[:-9]
    assert run(workload, checkpoints=checkpoints)[1].resumed_at == 0


def test_the_best_epoch_is_kept_and_patience_ends_training() -> None:
    """A learning rate that ruins the model after a good start."""
    workload = taught("Blobs")
    seen: list[float] = []

    def ruin(outputs: Tensor, batch: TrainingBatch) -> Tensor:
        loss = workload.loss(outputs, batch.targets)
        seen.append(float(loss.detach()))
        return loss if len(seen) < 30 else -loss.clamp(max=50)

    checkpoints = Memory()
    model, fitted = run(workload, objective=ruin, epochs=20, patience=3, schedule="constant", checkpoints=checkpoints)
    assert fitted.stopped_early
    assert len(fitted.history) == fitted.best_epoch + 3 < 20
    assert fitted.val_metric == max(row["val_metric"] for row in fitted.history)
    splits = workload.splits()
    assert evaluate(model, workload=workload, columns=splits["validation"], device="cpu")[1] == fitted.val_metric
    tree = unpack(checkpoints.data or b"")
    assert tree["finished"]
    for name, value in model.state_dict().items():
        assert torch.equal(tree["best"][name], value)


def test_lower_is_better_where_the_metric_says_so() -> None:
    _, fitted = run(taught("Sums"), epochs=6)
    assert fitted.val_metric == min(row["val_metric"] for row in fitted.history)
    assert fitted.val_metric < 0.5 * fitted.history[0]["val_metric"]


def test_among_equal_metrics_the_lower_loss_is_better() -> None:
    _, fitted = run(taught("Squares"), epochs=6)
    ties = [row for row in fitted.history if row["val_metric"] == fitted.val_metric]
    assert len(ties) > 1
    assert fitted.val_loss == min(row["val_loss"] for row in ties)


def test_nan_in_the_data_ends_training_at_once() -> None:
    workload = taught("Blobs")
    splits = workload.splits()
    splits["train"]["features"][17, 2] = np.nan
    with pytest.raises(TrainingDiverged, match=r"became nan in epoch 1.*learning_rate") as caught:
        run(workload, train=splits["train"])
    assert caught.value.details["epoch"] == 1


def test_nan_in_validation_ends_training() -> None:
    workload = taught("Blobs")
    splits = workload.splits()
    splits["validation"]["features"][3, 0] = np.inf
    with pytest.raises(TrainingDiverged, match="validation loss became nan in epoch 1"):
        run(workload, validation=splits["validation"])


def test_an_exploding_loss_is_named() -> None:
    with pytest.raises(TrainingDiverged, match="lower learning_rate"):
        run(taught("Sums"), optimizer="sgd", learning_rate=1e12)


class Wrong(nn.Module):
    """Answers whatever it is told to."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.answer = answer

    def forward(self, features: Tensor) -> Any:
        return self.answer(self.layer(features))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda x: (x, x), r"answered tuple \(.*\) to features float32\[2, 4\].*must answer one tensor"),
        (lambda x: x.sum(), r"answered float32\[\]"),
        (lambda x: x[:1], r"answered float32\[1, 3\]"),
        (lambda x: x[:, :, None, None], r"loss does not take outputs float32\[2, 3, 1, 1\] and targets int64\[2\]"),
        (lambda x: x @ x, r"does not take the inputs features float32\[2, 4\].*cannot be multiplied"),
    ],
)
def test_a_model_that_does_not_fit_is_told_with_shapes(answer: Callable[[Tensor], Any], says: str) -> None:
    with pytest.raises(WorkloadError, match=says):
        run(taught("Blobs"), model=Wrong(answer))


def test_inputs_of_other_names_are_told() -> None:
    with pytest.raises(WorkloadError, match=r"inputs features.*unexpected keyword argument 'features'"):
        run(taught("Blobs"), model=taught("Squares").model("teacher"))


def test_text_columns_are_told() -> None:
    workload = taught("Blobs")
    splits = workload.splits()
    splits["train"]["features"] = np.array(["a"] * 200)
    with pytest.raises(WorkloadError, match=r"column 'features' has dtype <U1"):
        run(workload, train=splits["train"])


def test_nothing_to_train_is_told() -> None:
    model = Wrong(lambda x: x).requires_grad_(False)
    with pytest.raises(WorkloadError, match="no parameters that can be trained"):
        run(taught("Blobs"), model=model)


def test_an_accelerator_of_any_name_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("meta"))
    assert torch_device("auto") == torch.device("meta") and torch_device("cpu") == torch.device("cpu")
    with pytest.raises(SpecError, match=r"device 'tpu' is not there .*on a TPU VM pip install torch-tpu"):
        torch_device("tpu")


@pytest.mark.parametrize("device", ["cuda:77", "nonsense"])
def test_a_device_that_is_not_there_is_told(device: str) -> None:
    with pytest.raises(SpecError, match=rf"device '{device}' is not there.*use auto"):
        run(taught("Blobs"), device=device)


def test_a_full_accelerator_offers_a_smaller_batch() -> None:
    def hungry(outputs: Tensor) -> Tensor:
        if len(outputs) > 2:  # two rows are asked about first
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 80 GiB")
        return outputs

    said = r"memory of cpu is full while training on batches of 32 rows \(CUDA out .*2\.00 GiB\.\); set batch_size: 16,"
    with pytest.raises(StageOutOfMemory, match=said):
        run(taught("Blobs"), model=Wrong(hungry))


def test_no_kind_of_accelerator_is_named_where_any_would_do() -> None:
    """torch.accelerator is whichever there is; only CUDA has devices that lack bf16."""
    named = {
        path.name
        for folder in ("torch_models", "running")
        for path in (Path(errors.__file__).parent.parent / folder).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("cuda", "xpu", "mps")
    }
    assert named == {"fit_amp.py"}


def test_a_training_runs_on_an_accelerator_that_nobody_has_heard_of() -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("accelerator_script.py"))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == ["imagined"] and found["largest"] < 1e-5
    here, there = found["curves"]
    assert [row["val_metric"] for row in here] == [row["val_metric"] for row in there]
    assert [row["train_loss"] for row in here] == pytest.approx([row["train_loss"] for row in there], rel=1e-5)


def test_frozen_parameters_stay() -> None:
    workload = taught("Blobs")
    model = build(workload, "teacher", {})
    frozen = dict(model.named_parameters())["dense1.weight"].requires_grad_(False)
    before = frozen.detach().clone()
    run(workload, model=model)
    assert torch.equal(frozen, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_learns_and_resumes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop as it is on CUDA: the CPU emulates the types, and small models do not mind."""
    monkeypatch.setattr("tasks.torch_models.fit.amp_dtype", lambda *_: dtype)
    workload, checkpoints = taught("Blobs"), Memory(kill_at=2)
    _, straight = run(workload)
    with pytest.raises(KeyboardInterrupt):
        run(workload, checkpoints=checkpoints)
    checkpoints.kill_at = 0
    model, fitted = run(workload, checkpoints=checkpoints)
    assert fitted.history == straight.history
    assert fitted.val_metric > 0.7
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_cpu_trains_in_float32_and_says_so_where_a_type_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True, "avx512_fp16": True})
    assert (amp_dtype("auto", cpu), amp_dtype("off", cpu), caplog.text) == (None, None, "")
    assert (amp_dtype("bf16", cpu), amp_dtype("fp16", cpu)) == (None, None)
    assert "amp bf16: mixed precision is for accelerators, this is a CPU; training in float32" in caplog.text
    assert (amp_dtype("bf16", cuda), amp_dtype("fp16", cuda)) == (torch.bfloat16, torch.float16)
    assert amp_dtype("auto", torch.device("xpu")) == torch.bfloat16, "of any other accelerator too"


def test_the_callers_generators_and_switches_are_left_alone() -> None:
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    threads = torch.get_num_threads()
    expected = (torch.rand(1).item(), random.random(), np.random.rand())
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    run(taught("NoisyBlobs", dropout=0.2))
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == threads


def test_the_learning_rate_rises_and_falls() -> None:
    cosine = Training(1, 2, learning_rate=1.0, warmup=0.1)
    rates = [cosine.rate(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == 1.0
    assert 0 < rates[-1] < 0.001
    constant = Training(1, 2, learning_rate=0.3, schedule="constant", warmup=0.0)
    assert [constant.rate(step, 100) for step in (0, 99)] == [0.3, 0.3]


def test_a_training_is_what_a_spec_says_about_it() -> None:
    spec = TrainSpec(epochs=7, optimizer="sgd", patience=None, scale={"width": 2.0}).model_dump()
    wanted = {name: spec[name] for name in SETTINGS - {"share", "shards", "engine", "pipelined"}}
    assert Training.of(spec) == Training(**wanted) and set(spec) == {*wanted, "scale"}
    assert Training.of(DistillSpec(share=0.25).model_dump()).share == 0.25
    short = QatSpec(epochs=3).model_dump()
    parallel = Parallel(shards=4, engine="pipeline")
    job = Job(run_id="r", model="m", store="s3://none", workload=reference("Blobs"), parallel=parallel)
    made = Training.of(short, job)
    settings = Training(epochs=3, batch_size=64, learning_rate=1e-3, weight_decay=0.0, shards=4)
    assert made == replace(settings, pipelined=True) and repr(made) == repr(settings), "no part of what a training is"


def test_each_epoch_has_an_order_of_its_own() -> None:
    workload = taught("Blobs")
    orders: list[list[int]] = []

    def watch(outputs: Tensor, batch: TrainingBatch) -> Tensor:
        orders.append(batch.index.tolist())
        return workload.loss(outputs, batch.targets)

    run(workload, objective=watch, epochs=2, batch_size=200)
    assert sorted(orders[-1]) == sorted(orders[-2]) == list(range(200))
    assert orders[-1] != orders[-2]


def test_predictions_come_in_order_and_in_chunks() -> None:
    workload = taught("Blobs")
    columns = workload.splits()["train"]
    many = {name: np.concatenate([values] * 4) for name, values in columns.items()}
    model = build(workload, "teacher", {})
    outputs = predict(model, workload=workload, columns=many, device="cpu")
    assert outputs.shape == (800, 3)
    np.testing.assert_allclose(outputs[600:], outputs[:200], atol=1e-6)


def test_only_large_models_get_several_threads() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 100))

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, image: Tensor) -> Tensor:
            answer: Tensor = self.net(image)
            return answer

    inputs = {"image": torch.zeros(2, 1, 8, 8)}
    assert row_macs(Named(), inputs) == 6400
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with worthwhile_threads(Named(), inputs, batch_size=64):
            assert torch.get_num_threads() == 1
        with worthwhile_threads(Named(), inputs, batch_size=1 << 20):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_share_of_the_rows_is_the_same_ones_in_every_epoch() -> None:
    used = _used(100, 0.3, seed=4)
    assert len(set(used.tolist())) == 30 and torch.equal(used, _used(100, 0.3, seed=4))
    assert not torch.equal(used, _used(100, 0.3, seed=5))
    assert _used(100, 1.0, seed=4).tolist() == list(range(100))
    assert len(_used(5, 0.01, seed=0)) == 2, "BatchNorm cannot train on one row"
