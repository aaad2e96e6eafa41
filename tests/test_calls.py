"""``import winnow`` as a person uses it: the README's notebook, from a module to a served variant, and every call."""

from __future__ import annotations

import json
import os
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import nbformat
import numpy as np
import pytest
from conftest import RunningStack
from nbclient import NotebookClient

import winnow
from model_registry.store import Store

SMALL: dict[str, Any] = {
    "search.shrink": [0.4], "search.rungs": 1, "search.control": False, "search.qat": False, "distill.epochs": 4,
    "quantize.methods": ["weights8"], "gates.per_class_margin": None, "measure.rounds": 5, "measure.seconds": 0.1,
}  # fmt: skip
"""What makes a search take seconds."""
(_TEXT,) = [
    block
    for block in re.findall(r"```python\n(.*?)```", (Path(__file__).parent.parent / "README.md").read_text(), re.DOTALL)
    if "winnow.compress(" in block
]
README = _TEXT.replace('_drop": 0.02', '_drop": 0.1').replace(
    "minutes=10,",
    f"minutes=10, preprocess=scale, labels=[str(digit) for digit in range(10)], overrides={SMALL},",
)
"""What the README shows, made small, with preprocessing and labels."""
NOTEBOOK = [
    """
    import torch, winnow
    from sklearn.datasets import load_digits
    from torch import nn
    """,
    """
    digits = load_digits()
    images, classes = digits.images[:, None].astype("float32"), digits.target
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).numpy()
    train, validation, test = [(images[r], classes[r]) for r in (rows[:700], rows[700:1100], rows[1100:])]
    """,
    """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU())
            self.head = nn.Linear(64, 10)

        def forward(self, image):
            return self.head(self.body(image))

    def scale(image):
        return image / 16

    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    inputs, targets = torch.from_numpy(train[0]), torch.from_numpy(train[1])
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(scale(inputs)), targets).backward()
        optimizer.step()
    """,
    README,
    "result",
    "print(result.variants.to_json(orient='records'))",
    "print(winnow.load(result).predict(images[0]))",
]
"""Cells of a notebook, and no other knowledge of the product."""
COMPRESSED, SHOWN, LISTED, ASKED = range(3, 7)
"""Numbers of those that are the product's."""


@dataclass(frozen=True)
class Notebook:
    """A notebook that ran to its end, and where."""

    outputs: list[list[dict[str, Any]]]
    folder: Path
    stack: RunningStack

    def text(self, cell: int) -> str:
        return "".join(o.get("text", "") for o in self.outputs[cell] if o.get("name") == "stdout")


@pytest.fixture(scope="module")
def notebook(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Notebook:
    folder = tmp_path_factory.mktemp("notebook")
    document = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(textwrap.dedent(cell).strip()) for cell in NOTEBOOK]
    )
    client = NotebookClient(document, timeout=280, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    done = client.execute(env={**os.environ, "WINNOW_HOME": str(stack.home)})
    return Notebook([cell["outputs"] for cell in done.cells], folder, stack)


@pytest.fixture
def reached(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> Notebook:
    """The same, with this process reaching the stack as the notebook did."""
    monkeypatch.setenv("WINNOW_HOME", str(notebook.stack.home))
    for name, value in notebook.stack.environment.items():
        monkeypatch.setenv(name, value)
    return notebook


def test_a_notebook_shows_the_result_and_the_progress(notebook: Notebook) -> None:
    assert len(_TEXT.splitlines()) <= 12 and README.count("overrides=") == 1 and README.count(": 0.1,") == 1
    first, *table = notebook.text(COMPRESSED).splitlines()
    assert first.startswith("mine, run ") and "released" in first and "replaces teacher.fp32" in first
    assert any("teacher.weights8" in line for line in table), "the data frame has a row per variant"
    assert "array(" in notebook.text(COMPRESSED).rpartition("{")[2], "a sample is answered by output name"
    (shown,) = [o for o in notebook.outputs[SHOWN] if o["output_type"] == "execute_result"]
    page = shown["data"]["text/html"]
    assert "mine version 1: released." in page and "<table" in page and "weights8" in page
    progress = "".join(o["text"] for o in notebook.outputs[COMPRESSED] if o.get("name") == "stderr")
    assert "bring" in progress and "validate" in progress and "Traceback" not in progress
    variants = json.loads(notebook.text(LISTED))
    assert [v["baseline"] for v in variants] == [True] + [False] * (len(variants) - 1)
    (chosen,) = [v for v in variants if v["chosen"]]
    assert chosen["smaller"] > 3 and 0.8 < chosen["accuracy_low"] < chosen["accuracy"] < chosen["accuracy_high"]
    assert "'label': '0'" in notebook.text(ASKED)


def test_what_it_made_is_in_service(reached: Notebook) -> None:
    url = reached.stack.environment["WINNOW_ENDPOINT"] + "/v2/models/mine/infer"
    body = {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.0] * 64}]}
    answer = httpx.post(url, json=body).json()
    assert {"logits", "label", "probability"} == {output["name"] for output in answer["outputs"]}


def test_every_way_to_name_a_model_loads_the_same_one(reached: Notebook, tmp_path: Path) -> None:
    champion = winnow.load("mine@champion")
    report = winnow.variants("mine")
    assert champion.variant.digest == report.loc[report["chosen"], "digest"].item()
    file = tmp_path / "model.onnx"
    file.write_bytes(Store.from_environment().fetch_bytes(champion.variant.file("model.onnx")))
    images = np.random.default_rng(0).uniform(0, 16, (5, 1, 8, 8)).astype(np.float32)
    expected = champion.predict_batch(images)
    for what in ("mine", "mine@1", file, str(file)):
        found = winnow.load(what).predict_batch(images)
        assert (found["logits"] == expected["logits"]).all(), what
    one = champion.predict(images[2])
    assert one["label"] == expected["label"][2] and one["probability"] == pytest.approx(expected["probability"][2])
    assert champion.predict_batch(images.tolist())["label"].tolist() == expected["label"].tolist()


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("nobody", "no run and no model is called 'nobody'"),
        ("nobody@champion", r"has no champion \(released models: .*mine"),
        ("mine@latest", "after @ comes champion or a version's number"),
    ],
)
def test_a_wrong_name_says_what_there_is(reached: Notebook, what: str, text: str) -> None:
    with pytest.raises(winnow.WinnowError, match=text):
        winnow.load(what)


def test_inputs_that_do_not_fit_are_refused(reached: Notebook) -> None:
    model = winnow.load("mine@champion")
    for wrong, text in [
        (np.zeros((2, 8, 8)), r"takes FP32\[-1, 1, 8, 8\] \(-1 is free\), got \[2, 8, 8\]"),
        ({"picture": np.zeros((2, 1, 8, 8))}, r"has the inputs \['image'\], got \['picture'\]"),
        (np.full((1, 1, 8, 8), "a"), "takes numbers"),
        (np.zeros((0, 1, 8, 8)), r"got \[0, 1, 8, 8\]"),
    ]:
        with pytest.raises(Exception, match=text):
            model.predict_batch(wrong)


def test_the_project_is_the_user_s_to_keep(reached: Notebook) -> None:
    """The folder that compress wrote runs on its own, and finds all of its work done."""
    (project,) = (reached.stack.home / "projects").glob("mine-*")
    assert {path.name for path in project.iterdir()} - {"__pycache__"} == {
        "cells.py", "data", "spec.yaml", "weights.safetensors", "workload.py",
    }  # fmt: skip
    assert "winnow.ArrayWorkload" in (project / "workload.py").read_text()
    again = winnow.run(project / "spec.yaml", {**SMALL, "deploy": False})
    assert {line.status for line in again.report.stages if line.name.startswith(("bring", "prune", "distill"))} == {
        "reused"
    }
    assert again.status == "registered" and again.page is not None and again.page.is_file()
    both = winnow.compare("mine", again)
    assert both["run"].nunique() >= 1 and set(both["model"]) == {"mine"}


def test_promote_and_rollback(reached: Notebook) -> None:
    with pytest.raises(Exception, match="version 9"):
        winnow.promote("mine", 9)
    assert winnow.promote("mine", 1).changed is False
    with pytest.raises(Exception, match="nothing to roll back to"):
        winnow.rollback("mine")


def test_without_a_stack_the_error_says_what_to_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "WINNOW_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path))
    with pytest.raises(winnow.StackDown, match=r"winnow\.up\(\) in Python"):
        winnow.run("tiny")
