"""Data held in Python become columns, whatever form they have; what cannot is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset, TensorDataset

from tasks.running.errors import DataReadError
from tasks.running.splits import Columns
from tasks.workloads.data_in_hand import as_columns, hold_out

X = np.arange(12, dtype=np.float32).reshape(6, 2)
Y = np.array([0, 1, 2, 0, 1, 2])


class Pairs(Dataset[Any]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        return {"x": torch.from_numpy(X[index])}, int(Y[index])


FORMS: list[Any] = [
    (X, Y),
    [X, Y],
    (torch.from_numpy(X), torch.from_numpy(Y)),
    (torch.from_numpy(X).requires_grad_(), Y),
    (pd.DataFrame(X, columns=["a", "b"]), pd.Series(Y)),
    ({"x": X}, Y),
    {"x": X, "target": Y},
    {"x": X.tolist(), "target": Y.tolist()},
    TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)),
    list(zip(X, Y, strict=True)),
    Pairs(),
    (X, Y[:, None]),
]


@pytest.mark.parametrize("data", FORMS, ids=[str(i) for i in range(len(FORMS))])
def test_every_form_gives_the_same_columns(data: Any) -> None:
    columns = as_columns(data, ["x"], what="train")
    assert sorted(columns) == ["target", "x"]
    assert (columns["x"] == X).all() and (columns["target"] == Y).all()
    assert columns["target"].ndim == 1


def test_text_targets_are_numbered_by_the_labels() -> None:
    columns = as_columns((X, ["cat", "dog", "eel"] * 2), ["x"], labels=["dog", "cat", "eel"], what="train")
    assert columns["target"].tolist() == [1, 0, 2, 1, 0, 2]


@pytest.mark.parametrize(
    ("data", "inputs", "text"),
    [
        (X, ["x"], r"train is a ndarray; give \(inputs, targets\)"),
        ((X, Y[:5]), ["x"], "differ in length"),
        ((X[:0], Y[:0]), ["x"], "no rows"),
        ((X, ["a"] * 6), ["x"], "targets are text"),
        (({"y": X}, Y), ["x"], r"inputs \['y'\], the model's forward\(\) takes \['x'\]"),
        ((X, Y), ["x", "z"], "give a dict with these keys"),
        ({"x": X}, ["x"], "no 'target'"),
        ((pd.DataFrame({"a": [1, 2], "b": ["u", "v"]}), [0, 1]), ["x"], "cannot become one array of numbers"),
        (([torch.ones(2), torch.ones(3)], [0, 1]), ["x"], "bring all rows to one shape"),
        ([1, 2, 3], ["x"], "an item of type int"),
        (7, ["x"], "train is a int"),
    ],
)
def test_what_cannot_become_columns_is_refused(data: Any, inputs: list[str], text: str) -> None:
    with pytest.raises(DataReadError, match=text):
        as_columns(data, inputs, what="train")


@given(rows=st.integers(2, 400), seed=st.integers(0, 5))
def test_held_out_rows_are_nowhere_else(rows: int, seed: int) -> None:
    train: Columns = {"x": np.arange(rows), "target": np.arange(rows) % 3}
    kept, held = hold_out(train, seed=seed)
    assert sorted([*kept["x"], *held["x"]]) == list(range(rows))
    assert 1 <= len(held["x"]) <= max(1, round(rows / 10))
    assert (kept["target"] == kept["x"] % 3).all() and (held["target"] == held["x"] % 3).all()


def test_a_row_that_is_there_twice_is_held_out_twice_or_not_at_all() -> None:
    train: Columns = {"x": np.arange(300) % 60 + 0.1, "target": np.arange(300) % 3}
    kept, held = hold_out(train)
    assert len(held["x"]) and not set(kept["x"].tolist()) & set(held["x"].tolist())
