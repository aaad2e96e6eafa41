"""The workloads of the compression proof's further networks: shapes, and that what the specs say is understood."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flows.spec import load_spec
from tasks.running.stage import WorkloadRef
from tasks.workloads.workload import load_workload

FOLDER = Path(__file__).parents[1] / "benchmarks" / "networks"
ROWS = {"train": 4, "calibration": 2, "validation": 2, "test": 2}


@pytest.mark.parametrize(
    ("name", "workload", "metric"),
    [("unet", "unet_workload:ShapePixels", "iou"), ("two_inputs", "two_inputs_workload:BarsAndColumns", "mse")],
)
def test_a_row_s_network_answers_what_its_metric_takes(name: str, workload: str, metric: str) -> None:
    assert load_spec(FOLDER / f"{name}_budget.yaml").workload.path == workload
    loaded = load_workload(WorkloadRef(path=workload, folder=str(FOLDER), arguments={"rows": ROWS}))
    splits = loaded.splits()
    inputs, targets = loaded.batch({column: torch.from_numpy(values) for column, values in splits["train"].items()})
    with torch.no_grad():
        outputs = loaded.model("teacher").eval()(**loaded.preprocess(inputs))
    assert loaded.metric(targets.numpy()).name == metric
    assert loaded.scores(outputs.numpy(), targets.numpy()).shape == (4,)
    assert loaded.loss(outputs, targets).ndim == 0
