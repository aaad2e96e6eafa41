"""The bring stage: trained weights in three formats, and every way in which a file can be the wrong one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from pydantic import ValidationError
from torch import nn

from model_registry.store import Store
from model_registry.variant import TensorSpec
from tasks.onnx_models.onnx_graph import signature
from tasks.running.child import Child, Result
from tasks.running.errors import WeightsMismatch
from tasks.running.stage_cache import run_stage
from tasks.torch_models.fit_rows import predict
from tasks.torch_models.torch_variant import build, load
from tasks.train import BRING, BringSpec, _into_the_store, bring_child
from tasks.train.onnx_teacher import read_onnx
from tasks.train.weights_file import kind_of, read_weights
from tasks.workloads.workload import Workload

if TYPE_CHECKING:
    from taught_workloads import job_for, put_data, taught
else:  # tests/ is no package at run time
    from taught_workloads import job_for, put_data, taught

IMAGE = TensorSpec(name="image", datatype="FP32", shape=(-1, 1, 8, 8))


def bring(store: Store, workload: Workload, path: Path, *, named: bool = True, **spec: Any) -> Result:
    """The stage's entry in this process, after the step has put the file into the store, if one is ``named``."""
    asked = BringSpec(weights=str(path) if named else None, **spec)
    job = job_for(store, workload.ref)
    messages = os.open(os.devnull, os.O_WRONLY)
    try:
        return bring_child.main(
            Child(
                {
                    "job": job.model_dump(mode="json"),
                    "spec": asked.model_dump(mode="json"),
                    "data": put_data(store, workload).model_dump(mode="json"),
                    "inputs": {},
                    "extra": {"file": _into_the_store(job, str(path)).model_dump()} if named else {},
                    "key": "k",
                    "workdir": str(path.parent),
                },
                messages,
            )
        )
    finally:
        os.close(messages)


def safetensors_file(model: nn.Module, path: Path) -> None:
    safetensors.torch.save_file(model.state_dict(), path)


def state_dict_file(model: nn.Module, path: Path) -> None:
    torch.save(model.state_dict(), path)


def old_state_dict_file(model: nn.Module, path: Path) -> None:
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)


def training_script_file(model: nn.Module, path: Path) -> None:
    tensors = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": tensors}, path)


@pytest.mark.parametrize("write", [safetensors_file, state_dict_file, old_state_dict_file, training_script_file])
def test_weights_of_each_format_become_the_teacher(
    store: Store, tmp_path: Path, write: Callable[[nn.Module, Path], None]
) -> None:
    workload = taught("Squares")
    model = build(workload, "teacher", {"width": 0.3}, seed=5)
    write(model, tmp_path / "any.name")
    result = bring(store, workload, tmp_path / "any.name", scale={"width": 0.3})
    (variant,) = result.variants
    assert (variant.name, variant.stage, variant.format) == ("teacher", "bring", "torch")
    again = load(store, variant, workload=workload)
    columns = workload.splits()["test"]
    wanted = predict(model, workload=workload, columns=columns, device="cpu")
    np.testing.assert_array_equal(predict(again, workload=workload, columns=columns, device="cpu"), wanted)
    assert result.values["parameters"] == sum(p.numel() for p in model.parameters())
    assert 0 <= result.values["val_metric"] <= 1


def test_weights_that_a_model_comes_with_need_no_file(store: Store, tmp_path: Path) -> None:
    workload = taught("Squares")
    (variant,) = bring(store, workload, tmp_path, named=False, scale={"width": 0.3}).variants
    ours = load(store, variant, workload=workload).state_dict()
    theirs = build(workload, "teacher", {"width": 0.3}, seed=job_for(store, workload.ref).seed).state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_stage_runs_in_its_process_and_notices_other_content(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    workload = taught("Blobs")
    job, data, spec = job_for(store, workload.ref), put_data(store, workload), BringSpec(weights=str(tmp_path / "w"))
    safetensors_file(build(workload, "teacher", {}, seed=1), tmp_path / "w")
    extra = {"file": _into_the_store(job, str(spec.weights)).model_dump()}
    first = run_stage(BRING, job, spec, data=data, extra=extra)
    assert first.variant.name == "teacher"
    assert run_stage(BRING, job, spec, data=data, extra=extra).status == "reused"
    safetensors_file(build(workload, "teacher", {}, seed=2), tmp_path / "w")
    changed = {"file": _into_the_store(job, str(spec.weights)).model_dump()}
    assert changed != extra


def test_weights_come_from_s3_and_from_beside_the_spec(store: Store, tmp_path: Path) -> None:
    workload = taught("Blobs")
    store.put("mine/w.bin", b"content")
    job = job_for(store, workload.ref)
    entry = _into_the_store(job, f"{store.uri}/mine/w.bin")
    assert store.fetch_bytes(entry) == b"content"
    (tmp_path / "beside.bin").write_bytes(b"beside")
    beside = job.model_copy(update={"workload": workload.ref.model_copy(update={"folder": str(tmp_path)})})
    assert store.fetch_bytes(_into_the_store(beside, "beside.bin")) == b"beside"
    with pytest.raises(WeightsMismatch, match=r"there is no file .*missing.bin; relative paths start at"):
        _into_the_store(beside, "missing.bin")
    with pytest.raises(WeightsMismatch, match="there is no such object"):
        _into_the_store(job, f"{store.uri}/mine/other.bin")
    with pytest.raises(WeightsMismatch, match="there is no such object"):
        _into_the_store(job, "s3://no-such-bucket-anywhere/w")


def test_places_that_cannot_be_read_are_refused_in_the_spec() -> None:
    with pytest.raises(ValidationError, match=r"must be a path or s3://bucket/key; download https:// first"):
        BringSpec(weights="https://example.com/w.safetensors")


def test_a_misfit_is_told_tensor_by_tensor(store: Store, tmp_path: Path) -> None:
    workload = taught("Squares")
    tensors = build(workload, "teacher", {"width": 0.3}).state_dict()
    tensors["extra"] = tensors.pop("head.bias")
    safetensors.torch.save_file(tensors, tmp_path / "w")
    says = (
        r"w' against taught_workloads:Squares.model\('teacher', \*\*\{\}\): .*missing: head.bias; unexpected: extra; "
        r"wrong: conv1.weight is float32\[10, 1, 3, 3\] and must be float32\[32, 1, 3, 3\].*teacher.scale"
    )
    with pytest.raises(WeightsMismatch, match=says) as caught:
        bring(store, workload, tmp_path / "w")
    assert caught.value.details["unexpected"] == ["extra"]


def test_tied_tensors_may_be_stored_under_one_name(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = taught("Blobs")
    fresh = workload.user.model

    def tied(role: str) -> nn.Module:
        model: nn.Module = fresh(role)
        model.second = model.head
        return model

    monkeypatch.setattr(workload.user, "model", tied)
    monkeypatch.setattr(bring_child, "load_workload", lambda ref, known: workload)
    tensors = {n: v for n, v in tied("teacher").state_dict().items() if not n.startswith("second")}
    safetensors.torch.save_file(tensors, tmp_path / "w")
    assert bring(store, workload, tmp_path / "w").variants[0].name == "teacher"


class Code:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.path,))


def test_pickled_objects_are_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"a": Code(tmp_path / "run")}, tmp_path / "w")
    with pytest.raises(WeightsMismatch, match=r"'w' holds Python objects, which would run code when loaded"):
        read_weights(tmp_path / "w", "w")
    torch.save(nn.Linear(2, 2), tmp_path / "whole")
    with pytest.raises(WeightsMismatch, match=r"save model.state_dict\(\) instead of the model"):
        read_weights(tmp_path / "whole", "whole")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"epoch": 3, "weights": torch.ones(1)}, r"a dict with 'epoch' \(int\)"),
        ([torch.ones(1)], "holds a list; it must hold a state_dict"),
        ({}, "an empty dict"),
        (torch.ones(3), "holds a Tensor"),
    ],
)
def test_files_of_torch_that_hold_no_state_dict_are_refused(tmp_path: Path, content: Any, says: str) -> None:
    torch.save(content, tmp_path / "w")
    with pytest.raises(WeightsMismatch, match=says):
        read_weights(tmp_path / "w", "w")


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n" + b"x" * 40, b"name,value\n1,2\n", b"{}", b"\x00" * 64])
def test_other_files_are_refused(store: Store, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(
        WeightsMismatch, match="is neither safetensors, nor a state_dict saved by torch, nor an ONNX file"
    ):
        bring(store, taught("Blobs"), tmp_path / "w")


@pytest.mark.parametrize("write", [safetensors_file, state_dict_file])
def test_damaged_files_are_refused(tmp_path: Path, write: Callable[[nn.Module, Path], None]) -> None:
    write(nn.Linear(50, 50), tmp_path / "w")
    data = (tmp_path / "w").read_bytes()
    (tmp_path / "w").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsMismatch, match=r"'w': .*save it again"):
        read_weights(tmp_path / "w", "w")


# -- ONNX -------------------------------------------------------------------------------------------------------------


def onnx_classifier(
    *, batch: str | int = "batch", name: str = "image", size: int = 8, classes: int = 2, output: str = "scores"
) -> ModelProto:
    """Flatten and Gemm, as a user may have exported it: with a path in it."""
    weight = np.random.default_rng(0).normal(size=(size * size, classes)).astype(np.float32)
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Flatten", [name], ["flat"], doc_string="/home/me/model.py"),
                helper.make_node("Gemm", ["flat", "w"], [output]),
            ],
            "g",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 1, size, size])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, classes])],
            [numpy_helper.from_array(weight, "w")],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=8,
    )


def test_an_onnx_file_becomes_the_teacher(store: Store, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(onnx_classifier().SerializeToString())
    assert kind_of(tmp_path / "w") == "onnx"
    result = bring(store, taught("Squares"), tmp_path / "w")
    (variant,) = result.variants
    assert (variant.name, variant.stage, variant.format) == ("teacher", "bring", "onnx")
    assert variant.inputs == (IMAGE,)
    assert [(o.name, o.shape) for o in variant.outputs] == [("scores", (-1, 2))]
    assert {f.path for f in variant.files} == {"model.onnx", "assets/labels.json"}
    stored = store.fetch_bytes(variant.file("model.onnx"))
    assert b"/home/me" not in stored
    assert signature(onnx.load_from_string(stored))[0] == variant.inputs
    assert store.fetch_bytes(variant.file("assets/labels.json")) == b'["left","right"]'
    assert (result.values["parameters"], result.values["macs"]) == (128, 128)
    assert result.values["task"]["kind"] == "classes"


def test_an_onnx_file_takes_no_scale(store: Store, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(onnx_classifier().SerializeToString())
    with pytest.raises(WeightsMismatch, match=r"has its own architecture; remove teacher.scale"):
        bring(store, taught("Squares"), tmp_path / "w", scale={"width": 2})


def external() -> ModelProto:
    model = onnx_classifier()
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return model


def half_answers() -> ModelProto:
    model = onnx_classifier()
    answer = model.graph.output[0]
    model.graph.node.append(helper.make_node("Cast", [answer.name], ["half"], to=TensorProto.FLOAT16))
    answer.name, answer.type.tensor_type.elem_type = "half", TensorProto.FLOAT16
    return model


def cut_short() -> ModelProto:
    model = onnx_classifier()
    del model.graph.node[0]
    return model


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: onnx_classifier(batch=1), r"fixes the batch: input 'image' has shape \[1, 1, 8, 8\].*dynamic_shapes"),
        (lambda: onnx_classifier(name="x"), r"it has no input 'image'; it wants an input 'x'"),
        (lambda: onnx_classifier(size=28), r"input 'image' is FP32\[-1, 1, 28, 28\], the data FP32\[-1, 1, 8, 8\]"),
        (lambda: onnx_classifier(classes=3), r"first output 'scores' is FP32\[-1, 3\].*scores of the 2 classes"),
        (external, r"keeps 1 tensors in another file; save it as one file"),
        (half_answers, r"its outputs \['half'\] are FP16, .* cast them to FP32"),
        (cut_short, r"no valid ONNX model"),
    ],
)
def test_onnx_files_that_do_not_fit_are_refused(make: Callable[[], ModelProto], says: str) -> None:
    with pytest.raises(WeightsMismatch, match=says):
        read_onnx(make().SerializeToString(), "w.onnx", wanted=(IMAGE,), classes=2)


def test_a_damaged_onnx_file_is_refused() -> None:
    with pytest.raises(WeightsMismatch, match="no ONNX model"):
        read_onnx(onnx_classifier().SerializeToString()[:-20], "w.onnx", wanted=(IMAGE,), classes=2)


def test_labels_are_left_out_where_the_file_has_such_an_output(store: Store, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(onnx_classifier(output="label").SerializeToString())
    (variant,) = bring(store, taught("Squares"), tmp_path / "w").variants
    assert [f.path for f in variant.files] == ["model.onnx"]


def listed() -> ModelProto:
    """As IR 3 had it: the weights are inputs, too."""
    model = onnx_classifier()
    model.ir_version, model.opset_import[0].version = 3, 11
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [64, 2]))
    return model


def test_a_file_that_lists_its_weights_among_the_inputs_becomes_the_teacher(store: Store, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(listed().SerializeToString())
    (variant,) = bring(store, taught("Squares"), tmp_path / "w").variants
    assert [spec.name for spec in variant.inputs] == ["image"]
    model = onnx.load_from_string(store.fetch_bytes(variant.file("model.onnx")))
    assert [value.name for value in model.graph.input] == ["image"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ir_version": 14}, r"has IR version 14; the newest that ONNX Runtime [\d.]+ takes is \d+: export it with"),
        ({"operator": "Hann"}, r"no valid ONNX model|does not take it"),
    ],
)
def test_what_the_runtime_does_not_take_is_refused_when_it_is_brought(changes: dict[str, Any], says: str) -> None:
    model = onnx_classifier()
    model.ir_version = changes.get("ir_version", 8)
    model.graph.node[0].op_type = changes.get("operator", "Flatten")
    with pytest.raises(WeightsMismatch, match=says):
        read_onnx(model.SerializeToString(), "w.onnx", wanted=(IMAGE,), classes=2)
