"""Variants: equal digests mean equal behaviour; labels do not count; what was altered does not load."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from model_registry.manifest import FileEntry
from model_registry.variant import RuntimeSpec, TensorSpec, Variant

MODEL = FileEntry(path="model.onnx", sha256="a" * 64, size=10)
LABELS = FileEntry(path="assets/labels.json", sha256="b" * 64, size=2)
X = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
Y = TensorSpec(name="logits", datatype="FP32", shape=(-1, 3))


def variant(**changes: Any) -> Variant:
    fields: dict[str, Any] = {
        "name": "student",
        "stage": "export",
        "format": "onnx",
        "files": (MODEL, LABELS),
        "inputs": (X,),
        "outputs": (Y,),
    }
    return Variant.model_validate({**fields, **changes})


def test_names_are_labels_and_the_order_of_files_does_not_count() -> None:
    first = variant()
    assert len(first.digest) == 64
    assert variant(name="other", stage="quantize", files=(LABELS, MODEL)).digest == first.digest


@pytest.mark.parametrize(
    "change",
    [
        {"files": (MODEL,)},
        {"files": (MODEL, LABELS.model_copy(update={"sha256": "c" * 64}))},
        {"inputs": (X.model_copy(update={"name": "z"}),)},
        {"outputs": (Y.model_copy(update={"shape": (-1, 4)}),)},
        {"runtime": RuntimeSpec(intra_op_threads=2)},
        {"runtime": RuntimeSpec(spinning=True)},
        {"runtime": RuntimeSpec(cpu_class="x86-64/avx2")},
        {"runtime": RuntimeSpec(graph_optimization="basic")},
        {"runtime": RuntimeSpec(arena=False)},
        {"runtime": RuntimeSpec(disabled_optimizers=("NchwcTransformer",))},
        {"runtime": RuntimeSpec(gpu_class="nvidia-h200/sm90/driver580")},
        {"runtime": RuntimeSpec(precision="fp16")},
        {"runtime": RuntimeSpec(cuda_graph=True)},
        {"format": "torch"},
    ],
)
def test_everything_that_changes_behaviour_changes_the_digest(change: dict[str, Any]) -> None:
    assert variant(**change).digest != variant().digest


def test_it_survives_json_and_an_altered_one_does_not_load() -> None:
    first = variant()
    text = first.to_json()
    assert Variant.model_validate_json(text) == first
    assert json.loads(text)["schema"] == 1
    document = json.loads(text)
    document["runtime"]["intra_op_threads"] = 8
    with pytest.raises(ValidationError, match="its content hashes to"):
        Variant.model_validate(document)


def test_the_first_manifest_ever_written_keeps_its_digest() -> None:
    # Stored digests must stay valid: a change of this number is a break with every store.
    assert variant().digest == "01d161d3797005113ec6d4a29e333936ea186d93903cd16770b465620c9632f6"


def test_a_runtime_without_later_fields_is_written_as_before_them() -> None:
    runtime = {"provider", "intra_op_threads", "inter_op_threads", "spinning", "graph_optimization", "cpu_class"}
    assert set(json.loads(variant().to_json())["runtime"]) == runtime
    tuned = variant(runtime=RuntimeSpec(arena=False, disabled_optimizers=("NchwcTransformer",)))
    assert set(json.loads(tuned.to_json())["runtime"]) == runtime | {"arena", "disabled_optimizers"}
    assert Variant.model_validate_json(tuned.to_json()) == tuned
    with pytest.raises(ValidationError, match="disabled_optimizers"):
        RuntimeSpec(disabled_optimizers=("../x",))


@pytest.mark.parametrize("change", [{"color": "red"}, {"schema": 2}, {"format": "pickle"}])
def test_unknown_keys_schemas_and_formats_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        variant(**change)


def test_it_is_frozen_and_knows_its_files() -> None:
    first = variant()
    with pytest.raises(ValidationError, match="frozen"):
        first.name = "x"  # type: ignore[misc]
    assert first.size == 12 and first.file("model.onnx") == MODEL
    with pytest.raises(KeyError, match="no file 'weights'"):
        first.file("weights")


@given(st.permutations(["m", "l", "k"]), st.integers(0, 2**40))
def test_the_digest_depends_on_the_set_of_files_only(names: list[str], size: int) -> None:
    def files(order: list[str]) -> tuple[FileEntry, ...]:
        return tuple(FileEntry(path=name, sha256="d" * 64, size=size) for name in order)

    assert variant(files=files(names)).digest == variant(files=files(["m", "l", "k"])).digest
