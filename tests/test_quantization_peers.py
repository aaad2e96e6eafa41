"""The comparison with other tools' files: what each gets, what is made where no peer is installed, and its table."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT / "benchmarks" / "peers")]

import compare  # noqa: E402
from peer_measuring import Measuring  # noqa: E402
from peer_table import table  # noqa: E402

from flows.spec import load_spec  # noqa: E402
from tasks.export.onnx_export import export_onnx  # noqa: E402
from tasks.export.raw_inputs import RawInputs  # noqa: E402
from tasks.workloads.workload import load_workload  # noqa: E402

pytestmark = pytest.mark.slow  # each tool is a process of its own that imports torch

SPEC = """\
schema: 1
model: two
workload:
  path: "two_inputs_workload:BarsAndColumns"
  arguments: {rows: {train: 20, calibration: 64, validation: 40, test: 60}}
  folder: FOLDER
budget: {max_relative_drop: 0.01}
"""


def test_files_of_two_inputs_and_a_regression_are_made_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tmp_path / "two.yaml"
    spec.write_text(SPEC.replace("FOLDER", str(ROOT / "benchmarks" / "networks")))
    workload = load_workload(load_spec(spec).workload)
    rows = {name: torch.from_numpy(values[:4]) for name, values in workload.splits()["calibration"].items()}
    inputs = {name: values for name, values in rows.items() if name != "target"}
    torch.manual_seed(0)
    module = RawInputs(workload.model("teacher").eval(), workload.preprocess, tuple(inputs))
    fp32 = tmp_path / "fp32.onnx"
    fp32.write_bytes(export_onnx(module, inputs, output="answer"))

    monkeypatch.setattr(compare, "PEERS", tmp_path / "peers")
    monkeypatch.setattr(compare, "REQUIREMENTS", {})
    folder = tmp_path / "peers" / "two"
    compare.make_files(str(spec), fp32, folder, max_drop=0.01, relative=True, validation_rows=30)
    with np.load(folder / "calibration.npz", allow_pickle=False) as archive:
        assert {name: archive[name].shape[0] for name in archive.files} == {"image": 64, "table": 64, "target": 64}
    ours, plain = compare.load(folder / "peer_ours.json"), compare.load(folder / "peer_onnxruntime.json")
    assert plain.pop("versions")["onnxruntime"] == ours.pop("versions")["onnxruntime"]
    made = ours | plain
    assert sorted(made) == ["onnxruntime", "onnxruntime-x86", "ours-control", "ours-recipe", "ours-static"]
    assert not [facts for facts in made.values() if "failed" in facts]

    refused = onnx.load(folder / "fp32.onnx")
    refused.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(refused, folder / "refused.onnx")
    with Measuring(folder / "test.npz", workload, folder / "work", seconds=0.2) as measuring:
        found = {"fp32": compare.measured(measuring, folder / "fp32.onnx")}
        for name in ("refused", "ours-static", "onnxruntime-x86"):
            found[name] = compare.measured(measuring, folder / f"{name}.onnx")
    assert measuring.rows == 60 and found["fp32"]["metric"]["name"] == "mse"
    assert "NoSuchOperator" in found["refused"]["failed"]
    head, _, *lines = table(found).splitlines()
    assert {line.count("|") for line in (head, *lines)} == {head.count("|")}
    for name in ("ours-static", "onnxruntime-x86"):
        assert found[name]["bytes"] < found["fp32"]["bytes"] / 2
        assert found[name]["against_fp32"]["samples"] == 60
