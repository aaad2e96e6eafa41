"""Loading a user's workload: defaults where it is silent, everything said at once where it is wrong."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.running.errors import WorkloadError
from tasks.running.stage import WorkloadRef
from tasks.workloads.workload import Workload, load_workload

GOOD = """
import numpy as np
from torch import nn

class Mine:
    def __init__(self, rows: int = 4):
        self.rows = rows
    def model(self, role, **scale):
        return nn.Linear(3, 2)
    def splits(self):
        return {
            name: {"x": np.zeros((self.rows, 3), np.float32), "target": np.zeros(self.rows, np.int64)}
            for name in ("train", "calibration", "validation", "test")
        }
"""
_names = (f"user_workload_{i}" for i in range(1000))


def load(tmp_path: Path, source: str, **arguments: Any) -> Workload:
    name = next(_names)
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
    try:
        return load_workload(WorkloadRef(path=f"{name}:Mine", folder=str(tmp_path), arguments=arguments))
    finally:
        sys.path.remove(str(tmp_path))


def test_defaults_fill_what_a_small_workload_leaves_out(tmp_path: Path) -> None:
    workload = load(tmp_path, GOOD, rows=6)
    splits = workload.splits()
    assert {len(columns["target"]) for columns in splits.values()} == {6}
    inputs, targets = workload.batch({k: torch.from_numpy(v) for k, v in splits["train"].items()})
    assert list(inputs) == ["x"]
    assert workload.preprocess(inputs) is inputs
    assert workload.metric(splits["train"]["target"]).name == "accuracy"
    assert workload.metric(np.zeros(2, np.float32)).name == "mse"
    assert workload.loss(torch.zeros(6, 2), targets).item() == pytest.approx(np.log(2))
    assert workload.labels() is None
    assert workload.prune_hints() == {}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("def model", "def modell"), r"method model\(role, \*\*scale\) is missing"),
        (("def splits", "def split"), r"method splits\(\) is missing.*class Mine"),
        (("class Mine", "class Other"), r"has no class 'Mine'; it has \['Other'\]"),
        (("import numpy as np", "import numpyy as np"), "needs the module 'numpyy'"),
        (
            ("import numpy as np", "import tasks.data.splitting"),
            r"'tasks.data.splitting', .*from winnow import split_columns",
        ),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    with pytest.raises(WorkloadError, match=rf"(?s){says}"):
        load(tmp_path, GOOD.replace(*change))


def test_everything_missing_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"(?s)method model.*method splits.*'loss' must be a method"):
        load(tmp_path, "class Mine:\n    loss = 3\n")


def test_wrong_arguments_show_the_signature(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"Mine\(rows: int = 4\)"):
        load(tmp_path, GOOD, lines=3)


def test_an_absent_module_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=str(tmp_path)):
        load_workload(WorkloadRef(path="nowhere_to_be_found:Mine", folder=str(tmp_path)))
    sys.path.remove(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('"calibration", ', ""), "split 'calibration' is missing"),
        (('"target":', '"label":'), r"split 'train' has no column 'target'; it has \['label', 'x'\]"),
        (("np.zeros(self.rows, np.int64)", "np.zeros(2, np.int64)"), "differ in length"),
    ],
)
def test_wrong_splits_are_named(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    with pytest.raises(WorkloadError, match=says):
        load(tmp_path, GOOD.replace(*change)).splits()


def test_a_model_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="returned int"):
        load(tmp_path, GOOD.replace("nn.Linear(3, 2)", "7")).model("teacher")
