"""Torch variants: saved and loaded bit for bit, pruned and tied ones too; changed code is noticed where it matters."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model_registry.store import CorruptObject, Store
from model_registry.variant import Variant
from tasks.running.errors import SpecError, WeightsMismatch, WorkloadChanged, WorkloadError
from tasks.running.stage import WorkloadRef
from tasks.torch_models.fit_rows import predict
from tasks.torch_models.model_structure import ModelStructure
from tasks.torch_models.pruning_plan import dependency_graph
from tasks.torch_models.torch_variant import (
    build,
    load,
    load_tensors,
    made_up_inputs,
    parameter_count,
    read_architecture,
    save,
    tensor_specs,
)
from tasks.workloads.workload import Workload, load_workload

if TYPE_CHECKING:
    from taught_workloads import taught
else:  # tests/ is no package at run time
    from taught_workloads import taught


def saved(store: Store, model: nn.Module, workload: Workload, **structure: Any) -> Variant:
    return save(
        store,
        model,
        workload=workload,
        structure=ModelStructure(**{"role": "teacher", **structure}),
        sample=workload.splits()["validation"],
        name="teacher",
        stage="train",
    )


def saved_source(store: Store, workload: Workload) -> str:
    return read_architecture(store, saved(store, build(workload, "teacher", {}), workload)).source


def exercise(model: nn.Module, workload: Workload) -> None:
    """Move BatchNorm's statistics away from where they start."""
    specs = tensor_specs(model, workload=workload, sample=workload.splits()["test"])[0]
    model.train()(**workload.preprocess(made_up_inputs(specs)))


def outputs(model: nn.Module, workload: Workload) -> Any:
    return predict(model, workload=workload, columns=workload.splits()["test"], device="cpu")


@pytest.mark.parametrize(("name", "scale"), [("Squares", {"width": 0.4}), ("Sums", {}), ("Blobs", {"width": 2})])
def test_a_variant_comes_back_bit_for_bit(store: Store, name: str, scale: dict[str, Any]) -> None:
    workload = taught(name)
    model = build(workload, "student", scale, seed=3)
    exercise(model, workload)
    variant = saved(store, model, workload, role="student", scale=scale)
    assert {f.path for f in variant.files} == {"model.safetensors", "architecture.json"}
    assert variant.format == "torch"
    again = load(store, variant, workload=workload)
    assert not again.training
    np.testing.assert_array_equal(outputs(again, workload), outputs(model, workload))
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert saved(store, again, workload, role="student", scale=scale).digest == variant.digest


def test_specs_are_those_of_raw_inputs_and_served_outputs(store: Store) -> None:
    variant = saved(store, build(taught("Squares"), "teacher", {}), taught("Squares"))
    assert [(t.name, t.datatype, t.shape) for t in variant.inputs] == [("image", "FP32", (-1, 1, 8, 8))]
    assert [(t.name, t.datatype, t.shape) for t in variant.outputs] == [("logits", "FP32", (-1, 2))]
    variant = saved(store, build(taught("Sums"), "teacher", {}), taught("Sums"))
    assert [(t.name, t.shape) for t in variant.inputs] == [("vector", (-1, 3)), ("factor", (-1,))]
    assert [(t.name, t.shape) for t in variant.outputs] == [("prediction", (-1, 1))]


def test_the_initial_weights_depend_on_the_seed_alone() -> None:
    workload = taught("Squares")
    torch.rand(5)
    before = torch.get_rng_state()
    one, same, other = (build(workload, "student", {}, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.state_dict()["conv1.weight"], same.state_dict()["conv1.weight"])
    assert not torch.equal(one.state_dict()["conv1.weight"], other.state_dict()["conv1.weight"])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_scale_that_the_workload_does_not_know_is_told() -> None:
    says = r"Squares.model\(role, width\) does not take role 'student' with scale \{'depth': 2\}: .*unexpected"
    with pytest.raises(WorkloadError, match=says):
        build(taught("Squares"), "student", {"depth": 2})


def test_a_pruned_model_comes_back_bit_for_bit(store: Store) -> None:
    import torch_pruning

    workload = taught("Squares")
    model = build(workload, "teacher", {})
    exercise(model, workload)
    inputs = workload.preprocess({"image": torch.rand(2, 1, 8, 8)})
    whole = parameter_count(model)
    plan: list[tuple[str, bool, list[int]]] = []
    for removed in ([1, 5, 9], [0, 2]):  # the second in the numbering that the first left
        graph = dependency_graph(model, inputs)
        for name, function in (
            ("conv1", torch_pruning.prune_conv_out_channels),
            ("dense", torch_pruning.prune_linear_out_channels),
        ):
            layer = model.get_submodule(name)
            graph.get_pruning_group(layer, function, idxs=removed).prune()
            plan.append((name, True, removed))
    exercise(model, workload)
    variant = saved(store, model, workload, pruning=plan)
    again = load(store, variant, workload=workload)
    assert parameter_count(again) == parameter_count(model) < whole
    np.testing.assert_array_equal(outputs(again, workload), outputs(model, workload))
    assert read_architecture(store, variant).pruning == plan


WORKLOAD = """
    import numpy as np
    import torch
    from torch import nn

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4, bias=False)
            self.second = nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(torch.{activation}(self.second(self.first(x))))

    class Mine:
        def model(self, role):
            return Tied()

        def splits(self):
            random = np.random.default_rng(0)
            rows = {{"x": random.normal(size=({rows}, 4)).astype(np.float32), "target": np.arange({rows}) % 2}}
            return {{name: rows for name in ("train", "calibration", "validation", "test")}}

        def preprocess(self, inputs):
            return {{"x": inputs["x"] / {divisor}}}
"""


def written(tmp_path: Path, *, activation: str = "relu", rows: int = 12, divisor: float = 1.0) -> Workload:
    """A workload in a file of its own, as changed as wanted."""
    text = textwrap.dedent(WORKLOAD.format(activation=activation, rows=rows, divisor=divisor))
    (tmp_path / "user_module.py").write_text(text)
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)  # trusted by second and size, which may be the same
    sys.modules.pop("user_module", None)
    return load_workload(WorkloadRef(path="user_module:Mine", folder=str(tmp_path)))


@pytest.fixture
def user_module(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    sys.modules.pop("user_module", None)
    while str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


def test_tied_tensors_are_stored_once_and_stay_tied(store: Store, user_module: Path) -> None:
    workload = written(user_module)
    model = build(workload, "teacher", {})
    variant = saved(store, model, workload)
    assert read_architecture(store, variant).tied == {"second.weight": "first.weight"}
    again = load(store, variant, workload=workload)
    assert again.get_parameter("second.weight") is again.get_parameter("first.weight")
    np.testing.assert_array_equal(outputs(again, workload), outputs(model, workload))


def test_code_that_changed_nothing_for_the_model_still_loads(store: Store, user_module: Path) -> None:
    workload = written(user_module)
    variant = saved(store, build(workload, "teacher", {}), workload)
    changed = written(user_module, rows=30)
    assert read_architecture(store, variant).source != saved_source(store, changed)
    load(store, variant, workload=changed)


@pytest.mark.parametrize("change", [{"activation": "tanh"}, {"divisor": 2.0}])
def test_code_that_answers_otherwise_is_refused(store: Store, user_module: Path, change: dict[str, Any]) -> None:
    workload = written(user_module)
    variant = saved(store, build(workload, "teacher", {}), workload)
    with pytest.raises(
        WorkloadChanged, match=r"'teacher' .* other code of workload user_module:Mine: it answers other"
    ):
        load(store, variant, workload=written(user_module, **change))


def test_code_with_other_tensors_is_refused(store: Store, user_module: Path) -> None:
    workload = written(user_module)
    variant = saved(store, build(workload, "teacher", {}), workload)
    written(user_module)
    text = (user_module / "user_module.py").read_text().replace("nn.Linear(4, 2)", "nn.Linear(4, 3)")
    (user_module / "user_module.py").write_text(text.replace("self.head", "self.top"))
    sys.modules.pop("user_module")
    changed = load_workload(workload.ref)
    with pytest.raises(WorkloadChanged, match=r"missing: top.bias, top.weight; unexpected: head.bias, head.weight"):
        load(store, variant, workload=changed)


def test_a_variant_of_another_workload_is_refused(store: Store) -> None:
    variant = saved(store, build(taught("Blobs"), "teacher", {}), taught("Blobs"))
    with pytest.raises(WorkloadChanged, match=r"taught_workloads:Blobs with arguments \{\}, this job's is .*Squares"):
        load(store, variant, workload=taught("Squares"))
    with pytest.raises(WorkloadChanged, match="dropout"):
        load(store, variant, workload=taught("Blobs", dropout=0.5))


def test_a_corrupted_file_is_never_loaded(store: Store) -> None:
    workload = taught("Blobs")
    variant = saved(store, build(workload, "teacher", {}), workload)
    entry = variant.file("model.safetensors")
    data = bytearray(store.fetch_bytes(entry))
    data[-1] ^= 1
    store.put(store.blob_key(entry.sha256), bytes(data))
    with pytest.raises(CorruptObject):
        load(store, variant, workload=workload)


def test_a_misfit_is_told_tensor_by_tensor() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    tensors = {
        "0.weight": torch.zeros(2, 4),
        "0.bias": torch.zeros(2, dtype=torch.float16),
        "1.bias": torch.zeros(1),
        "2.bias": torch.zeros(1),
    }
    says = (
        r"missing: 1.weight; unexpected: 2.bias; wrong: 0.weight is float32\[2, 4\] and must be float32\[2, 3\], "
        r"0.bias is float16\[2\] and must be float32\[2\]"
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsMismatch, match=says) as caught:
        load_tensors(model, tensors)
    assert caught.value.details["missing"] == ["1.weight"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_made_up_inputs_break_is_saved_without_probe(store: Store) -> None:
    workload = taught("Blobs")
    model = build(workload, "teacher", {})

    def picky(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Tensor]) -> None:
        if len(named["features"]) == 3:
            raise IndexError("no such token")

    model.register_forward_pre_hook(picky, with_kwargs=True)
    assert read_architecture(store, saved(store, model, workload)).probe is None


def test_an_onnx_variant_is_not_taken_for_a_torch_one(store: Store) -> None:
    variant = Variant(name="teacher", stage="bring", format="onnx", files=(), inputs=(), outputs=())
    with pytest.raises(SpecError, match=r"is an ONNX file.*remove distill and prune"):
        load(store, variant, workload=taught("Blobs"))


def test_nothing_in_the_files_tells_time_or_place(store: Store) -> None:
    workload = taught("Blobs")
    variant = saved(store, build(workload, "teacher", {}), workload)
    text = store.fetch_bytes(variant.file("architecture.json")).decode()
    assert str(Path(__file__).parent) not in text
    assert json.loads(text)["schema"] == 1
