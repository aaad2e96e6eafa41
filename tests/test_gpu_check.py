"""The check of a GPU machine runs where there is none, and says what it left out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from patience import PATIENCE

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu_check.py"


@pytest.mark.slow
@pytest.mark.skipif(torch.accelerator.is_available(), reason="what is left out is looked at")
def test_it_measures_the_cpu_and_names_the_rest(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), "--quick"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    found = json.loads(done.stdout)
    assert (found["device"], found["gpu_class"], found["quick"]) == ("cpu", None, True)
    rows = found["rows"]
    assert [row for row in rows if "error" in row] == []
    assert {row["kind"] for row in rows if row["part"] == "training"} == {"fp32", "fp32 channels last"}
    assert [row["same"] for row in rows if row["part"] == "same_bits"] == [True]
    assert [(row["differing"], row["floats"]) for row in rows if row["part"] == "xla"] == [(0, [])]
    asked = {(row["kind"], row["batch"]) for row in rows if row["part"] == "inference"}
    assert asked == {(kind, batch) for kind in ("fp32", "fp16", "static", "symmetric") for batch in (1, 16)}
    assert all(row["ms"] > 0 and row["difference"] < 1e-5 for row in rows if row["part"] == "inference")
    assert {each["part"] for each in found["skipped"]} == {
        "training tf32, bf16, graph, compiled",
        "several",
        "inference on CUDAExecutionProvider",
        "inference on TensorrtExecutionProvider",
    }
    assert list(tmp_path.iterdir()) == []


def test_no_part_begins_when_the_time_is_over(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), "--quick", "--seconds", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    found = json.loads(done.stdout)
    assert found["rows"] == [] and len(found["skipped"]) == 5
