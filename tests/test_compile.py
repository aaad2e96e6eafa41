"""The compile stage: what it makes, how it is proven, found again, exported, and refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patience import PATIENCE
from small_int8_nets import float_file, int8
from taught_workloads import job_for, put_data, taught
from torch import nn

from flows.exporting.exported_version import ExportedVersion, NotExportable
from flows.exporting.target_files import write_target
from model_registry.store import Store
from model_registry.target_form import load_target
from model_registry.variant import TensorSpec, Variant
from tasks import compile as compiling
from tasks.compile import compile_target, require_targets, target_form
from tasks.compile.answer_proof import different, prove
from tasks.running.errors import SpecError, TargetUnsupported
from tasks.running.launch import kept_processes
from tasks.running.splits import DataRef
from tasks.running.stage import Job


@pytest.fixture
def task(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Job, DataRef]]:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    workload = taught("Squares")
    with kept_processes():
        yield job_for(store, workload.ref), put_data(store, workload)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 2))


def variant(store: Store, file: bytes, name: str = "pruned.int8-static") -> Variant:
    return Variant(
        name=name,
        stage="quantize",
        format="onnx",
        files=(store.publish_bytes(file, "model.onnx"),),
        inputs=(TensorSpec(name="image", datatype="FP32", shape=(-1, 1, 8, 8)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),),
    )


def quantized(store: Store, folder: Path, *, powers_of_two: bool) -> Variant:
    rows = taught("Squares").splits()["calibration"]["image"]
    model, _ = int8(perceptron(), folder, powers_of_two=powers_of_two, name="image", rows=rows)
    return variant(store, model.SerializeToString())


def test_an_int8_variant_answers_the_same_bits_on_xla(task: tuple[Job, DataRef], store: Store, tmp_path: Path) -> None:
    job, data = task
    one = quantized(store, tmp_path, powers_of_two=False)
    outcome = compile_target.task.fn(job, "xla", data=data, variant=one)
    form = target_form(outcome)
    assert (form.state, form.rows, form.values, form.differing, form.tolerance) == ("proven", 50, 100, 0, 0.0)
    assert form.facts["platforms"] == "tpu, cpu, cuda" and form.device == "cpu"
    assert load_target(store, one.digest, "xla") == form
    assert compile_target.task.fn(job, "xla", data=data, variant=one).status == "reused"

    exported = ExportedVersion("squares", 3, one, store.uri)
    written = write_target(exported, store, tmp_path / "tpu", "xla")
    assert written == form
    assert json.loads((tmp_path / "tpu" / "proof.json").read_text())["version"] == 3
    asked = subprocess.run(
        [sys.executable, "ask.py"], cwd=tmp_path / "tpu", capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert "dtype=float32" in asked.stdout
    with pytest.raises(NotExportable, match=r"never compiled for fpga; add targets: \[fpga\]"):
        write_target(exported, store, tmp_path / "board", "fpga")


def test_an_fp32_variant_answers_closely(task: tuple[Job, DataRef], store: Store) -> None:
    job, data = task
    one = variant(store, float_file(perceptron(), "image", 1), "teacher.fp32")
    form = target_form(compile_target.task.fn(job, "xla", data=data, variant=one))
    assert form.state == "proven" and form.tolerance == 1e-5 and form.largest_difference <= 1e-5
    assert form.facts["arithmetic"] == "floats in FusedGemm, Gemm"


def test_what_a_target_cannot_take_is_kept_as_refused(task: tuple[Job, DataRef], store: Store, tmp_path: Path) -> None:
    job, data = task
    one = variant(store, float_file(perceptron(), "image", 1), "teacher.fp32")
    with pytest.raises(TargetUnsupported, match="target fpga takes int8 models") as raised:
        compile_target.task.fn(job, "fpga", data=data, variant=one)
    kept = load_target(store, one.digest, "fpga")
    assert kept is not None and kept.state == "refused" and kept.reason == raised.value.message
    with pytest.raises(NotExportable, match="has no proven form for fpga: target fpga takes int8 models"):
        write_target(ExportedVersion("squares", 1, one, store.uri), store, tmp_path / "board", "fpga")
    assert not (tmp_path / "board").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("verilator") is None, reason="needs Verilator: apt install verilator")
def test_an_int8_variant_becomes_hardware(task: tuple[Job, DataRef], store: Store, tmp_path: Path) -> None:
    job, data = task
    one = quantized(store, tmp_path, powers_of_two=True)
    form = target_form(compile_target.task.fn(job, "fpga", data=data, variant=one))
    assert (form.state, form.differing, form.rows) == ("proven", 0, 100_050)
    assert form.facts["latency"].endswith("a row per clock") and "an estimate" in form.facts["time"]
    write_target(ExportedVersion("squares", 1, one, store.uri), store, tmp_path / "board", "fpga")
    assert {file.name for file in (tmp_path / "board").iterdir()} >= {"rtl.tar.gz", "proof.json"}


def test_what_is_not_installed_is_said_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"xla needs jax, which is not installed: pip install 'winnow-mlops\[xla\]'"):
        require_targets(["xla"])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SpecError, match=r"fpga needs verilator, g\+\+, make, which this machine does not have: apt"):
        require_targets(["fpga"])


@pytest.mark.parametrize(
    ("answer", "tolerance", "state", "differing"),
    [
        (2.0, 0.0, "proven", 0),
        (2.00001, 1e-5, "proven", 5),
        (2.00001, 0.0, "refused", 5),
        (2.1, 1e-5, "refused", 5),
    ],
)
def test_a_proof_counts_what_differs(answer: float, tolerance: float, state: str, differing: int) -> None:
    def run(*inputs: Any) -> tuple[Any, ...]:
        (rows,) = inputs
        return (np.where(rows < 5, np.float32(answer), np.float32(4)),)

    rows = np.arange(20, dtype=np.float32)
    wanted = np.where(rows < 5, np.float32(2), np.float32(4))
    proof = prove(run, [rows], [wanted], batch=6, tolerance=tolerance)
    assert (proof["state"], proof["differing"], proof["rows"], proof["values"]) == (state, differing, 20, 20)


def test_not_a_number_is_like_itself_alone() -> None:
    one = np.array([np.nan, np.nan, 0.0, np.inf], np.float32)
    other = np.array([np.nan, 1.0, -0.0, np.inf], np.float32)
    assert different(one, other).tolist() == [False, True, False, False]
    proof = prove(lambda x: (one,), [one], [other], batch=4, tolerance=1e-5)
    assert proof["state"] == "refused"
