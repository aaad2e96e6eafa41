"""A model in hand becomes a project that another process builds again, bit for bit, or it is refused by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from torch import Tensor, nn

import winnow
from flows.calls.project import write_project
from flows.spec import load_spec
from tasks.running.errors import DataReadError, SpecError, WorkloadError


class Kept(nn.Module):
    """Keeps what it was made with."""

    def __init__(self, hidden: int = 4, names: tuple[str, ...] = ("a", "b")) -> None:
        super().__init__()
        self.hidden, self.names = hidden, names
        self.layers = nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, len(names)))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.layers(x)
        return answer


class Forgetful(Kept):
    """Does not: only its graph can say what it is."""

    def __init__(self, width: int) -> None:
        super().__init__(hidden=width)


class Undecided(nn.Module):
    """Neither its class nor its graph will do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(3, width)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.layer(x)
        return answer if answer.sum() > 0 else -answer


class Noisy(Kept):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(1)


class Starred(nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0]


def halved(x: Tensor) -> Tensor:
    return x / 2


def shaken(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + torch.randn(x.shape, generator=generator)


def hinge(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.multi_margin_loss(outputs, targets)


def top(outputs: Any, targets: Any) -> Any:
    return (outputs.argmax(1) == targets).astype(float)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path))
    return tmp_path


def rows(count: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.normal(size=(count, 3)), random.integers(0, 2, count)  # float64, as numpy makes them


NARROW = {"train": rows(), "validation": (rows()[0][:, :2], rows()[1]), "test": rows()}


def project(model: nn.Module, **changes: Any) -> Path:
    functions = {"preprocess": None, "augment": None, "loss": None}
    more: dict[str, Any] = {
        "name": None, "task": None, "spec": {"budget": {"max_accuracy_drop": 0.1}}, "labels": None, "metric": None,
        "arguments": None,
    }  # fmt: skip
    data = {"train": rows(), "calibration": None, "validation": rows(20, 1), "test": rows(20, 2)}
    functions |= {name: changes.pop(name) for name in list(changes) if name in functions}
    return write_project(model, changes.pop("data", data), functions=functions, **more | changes)


@pytest.mark.parametrize("task", ["labels", None])
def test_the_task_that_compress_is_given_is_the_spec_s(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.calls.compress_call.reach_servers", lambda: None)
    monkeypatch.setattr("flows.calls.compress_call.run_spec", lambda spec, overrides: load_spec(spec))
    splits = [(rows(20, seed)[0], np.eye(3)[np.arange(20) % 3]) for seed in range(3)]
    named = {"task": task} if task else {}
    spec: Any = winnow.compress(Kept(names=("a", "b", "c")), *splits, budget={"max_bytes": 900}, **named)
    assert spec.workload.task == task
    with pytest.raises(SpecError, match=r"workload.task: 'many' is refused: .*'binary', 'classes', 'labels'"):
        winnow.compress(Kept(), *splits, budget={"max_bytes": 900}, task="many")  # type: ignore[arg-type]


_ANSWER = """
import sys, torch, numpy, safetensors.torch
from tasks.running.stage import WorkloadRef
from tasks.workloads.workload import load_workload
w = load_workload(WorkloadRef(path="workload:Project", arguments={"data": "data"}, folder=sys.argv[1]))
model = w.model("teacher").eval()
model.load_state_dict(safetensors.torch.load_file(sys.argv[1] + "/weights.safetensors"))
raw = {n: torch.from_numpy(v) for n, v in w.splits()["validation"].items() if n != "target"}
(x,) = raw.values()
with torch.no_grad():
    numpy.save(sys.argv[2], model(**w.preprocess(raw)).numpy())
print(x.dtype, w.augments, hasattr(w.user, "loss"), w.metric(numpy.zeros(2, int)).name, w.labels())
"""


def answers(spec: Path, folder: Path) -> tuple[np.ndarray, str]:
    """What another process makes of the project, and what it says about it."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", _ANSWER, str(spec.parent), str(folder / "answers.npy")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return np.load(folder / "answers.npy", allow_pickle=False), done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "how"),
    [
        (lambda: Kept(hidden=7), "Kept(hidden=7, names=('a', 'b'))"),
        (lambda: Forgetful(5), "winnow.graph_module(network.GRAPH)"),
        (lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)), "winnow.graph_module(network.GRAPH)"),
    ],
)
def test_another_process_answers_the_same_bits(make: Callable[[], nn.Module], how: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make().train()
    name = next(iter(dict(model.named_parameters())))
    spec = project(model, name="mine")
    assert how in (spec.parent / "workload.py").read_text()
    assert model.training and name in dict(model.named_parameters())  # left as it was
    found, said = answers(spec, tmp_path)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(rows(20, 1)[0].astype(np.float32)))
    assert (found == expected.numpy()).all() and said == "torch.float32 False False accuracy None"


@pytest.mark.slow
def test_functions_and_labels_go_along(tmp_path: Path) -> None:
    metric = winnow.Metric("top", "higher", top)
    spec = project(
        Kept(),
        preprocess=halved,
        augment=shaken,
        loss=hinge,
        metric=metric,
        labels=["no", "yes"],
        arguments={"hidden": 4},
    )
    found, said = answers(spec, tmp_path)
    assert said == "torch.float32 True True top ('no', 'yes')" and found.shape == (20, 2)
    tensors = safetensors.torch.load_file(spec.parent / "weights.safetensors")
    assert set(tensors) == set(Kept().state_dict())


def test_the_spec_is_whole_and_equal_content_lies_in_one_place() -> None:
    torch.manual_seed(0)
    model = Kept()
    first, again = project(model), project(model)
    assert first == again and first.parent.name.startswith("kept-")
    loaded = load_spec(first)
    assert loaded.model == "kept" and loaded.teacher is not None and loaded.budget is not None
    assert yaml.safe_load(first.read_text())["workload"] == {"path": "workload:Project", "arguments": {"data": "data"}}
    with torch.no_grad():
        next(iter(model.parameters())).add_(1)
    assert project(model) != first
    assert not list(first.parent.parent.glob(".partial-*"))


@pytest.mark.parametrize(
    ("model", "changes", "error", "text"),
    [
        (Undecided(2), {}, WorkloadError, r"class: it does not keep .*Undecided.*By its graph: .*must not decide"),
        (Noisy(), {}, WorkloadError, "answers the same rows differently each time"),
        (Starred(), {}, WorkloadError, "does not name its inputs"),
        (Kept(), {"arguments": {"hidden": 5}}, WorkloadError, r"arguments .*takes other weights"),
        (Kept(), {"loss": lambda a, b: a}, WorkloadError, "loss is a lambda"),
        (Kept(), {"name": "a/b"}, SpecError, "cannot name a model"),
        (Kept(), {"data": NARROW}, WorkloadError, "does not take the inputs x float32"),
        (Kept(), {"data": {"train": 3, "validation": rows(), "test": rows()}}, DataReadError, "train is a int"),
        ("no model", {}, WorkloadError, "the model is a str"),
    ],
)  # fmt: skip
def test_what_cannot_be_reproduced_is_refused_and_leaves_nothing(
    model: Any, changes: dict[str, Any], error: type[Exception], text: str, home: Path
) -> None:
    with pytest.raises(error, match=f"(?s){text}"):
        project(model, **changes)
    assert not (home / "projects").exists() or list((home / "projects").iterdir()) == []
