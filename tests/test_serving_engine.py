"""The engine and its safety checks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx_models import constant, digits, filled, identities

from model_registry.cpu_class import CpuClassMismatch
from model_registry.manifest import ManifestMismatch, describe_folder
from model_registry.quiet import TELEMETRY_OFF
from model_registry.variant import RuntimeSpec, TensorSpec, Variant
from serving import onnx_safety
from serving.engine import Engine
from serving.exceptions import EngineLoadError, InvalidRequest
from serving.loaded_model import LoadedModel
from serving.onnx_safety import UnsafeModel, check_onnx
from serving.tensors import Array, bytes_array


def image(rows: int = 1) -> Array:
    return np.random.default_rng(0).uniform(0, 16, size=(rows, 1, 8, 8)).astype(np.float32)


def changed(variant: Variant, **changes: Any) -> Variant:
    return Variant.model_validate({**variant.model_dump(), "digest": "", **changes})


# -- the engine -------------------------------------------------------------------------------------------------
def test_a_classifier_gets_labels_and_probabilities(tmp_path: Path) -> None:
    engine = Engine(tmp_path, digits(tmp_path))
    found = engine.run({"image": image(5)})
    logits = found["logits"].astype(np.float64)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert [spec.name for spec in engine.outputs] == list(found) == ["logits", "label", "probability"]
    assert found["label"].tolist() == [str(i).encode() for i in logits.argmax(axis=1)]
    np.testing.assert_allclose(found["probability"], softmax.max(axis=1), rtol=1e-5)
    assert found["probability"].dtype == np.float32


def test_large_logits_have_probabilities_too(tmp_path: Path) -> None:
    found = Engine(tmp_path, digits(tmp_path, bias=1000.0)).run({"image": image(5)})
    logits = found["logits"].astype(np.float64)
    assert logits.min() > 900  # exp() of them is infinite
    softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(found["probability"], 1 / softmax.sum(axis=1), rtol=1e-3)
    assert b"" not in found["label"].tolist()


@pytest.mark.parametrize(
    "runtime",
    [
        RuntimeSpec(),
        RuntimeSpec(intra_op_threads=2, inter_op_threads=2, spinning=True, graph_optimization="basic", arena=False),
    ],
)
def test_onnx_runtime_is_set_as_the_variant_says(tmp_path: Path, runtime: RuntimeSpec) -> None:
    options = Engine(tmp_path, digits(tmp_path, runtime=runtime)).session.get_session_options()
    assert options.intra_op_num_threads == runtime.intra_op_threads
    assert options.inter_op_num_threads == runtime.inter_op_threads
    assert options.enable_cpu_mem_arena == runtime.arena
    assert options.graph_optimization_level.name == f"ORT_ENABLE_{runtime.graph_optimization.upper()}"
    for pool in ("intra_op", "inter_op"):
        assert options.get_session_config_entry(f"session.{pool}.allow_spinning") == str(int(runtime.spinning))


def test_only_the_outputs_asked_for_in_that_order(tmp_path: Path) -> None:
    engine = Engine(tmp_path, digits(tmp_path))
    assert list(engine.run({"image": image()}, ["probability", "logits"])) == ["probability", "logits"]
    assert list(engine.run({"image": image()}, ["label"])) == ["label"]


def test_a_row_that_is_not_finite_gets_no_label(tmp_path: Path) -> None:
    engine = Engine(tmp_path, digits(tmp_path))
    rows = image(2)
    rows[1] = np.nan
    found = engine.run({"image": rows})
    assert found["label"][0] != b""
    assert found["label"][1] == b""
    assert np.isnan(found["probability"][1])


def test_the_session_is_made_as_the_runtime_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}
    real = onnxruntime.InferenceSession

    def session(data: bytes, options: Any, **more: Any) -> Any:
        made.update(more, arena=options.enable_cpu_mem_arena, threads=options.intra_op_num_threads)
        return real(data, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    runtime = RuntimeSpec(arena=False, intra_op_threads=2, disabled_optimizers=("NchwcTransformer",))
    Engine(tmp_path, digits(tmp_path, runtime=runtime))
    assert made["arena"] is False and made["threads"] == 2 and made["disabled_optimizers"] == ["NchwcTransformer"]


def test_every_datatype_passes_through(tmp_path: Path) -> None:
    engine = Engine(tmp_path, identities(tmp_path))
    inputs: dict[str, Array] = {
        "in_BOOL": np.array([True, False]),
        "in_UINT8": np.array([0, 255], dtype=np.uint8),
        "in_INT32": np.array([-(2**31), 2**31 - 1], dtype=np.int32),
        "in_INT64": np.array([-(2**63), 2**63 - 1]),
        "in_FP16": np.array([0.5, np.inf], dtype=np.float16),
        "in_FP64": np.array([1e300, -0.0]),
        "in_BYTES": bytes_array(["ä".encode(), b""], (2,)),
    }
    found = engine.run(inputs)
    for name, array in inputs.items():
        assert found[name.replace("in_", "out_")].tolist() == array.tolist()


def test_a_changed_file_is_never_loaded(tmp_path: Path) -> None:
    variant = digits(tmp_path)
    path = tmp_path / "model.onnx"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(ManifestMismatch, match=r"changed \['model.onnx'\]"):
        Engine(tmp_path, variant)
    path.unlink()
    with pytest.raises(ManifestMismatch, match=r"missing \['model.onnx'\]"):
        Engine(tmp_path, variant)
    (tmp_path / "elsewhere").write_bytes(good)
    path.symlink_to("elsewhere")
    with pytest.raises(ManifestMismatch, match=r"changed \['model.onnx'\]"):
        Engine(tmp_path, variant)
    path.unlink()
    path.write_bytes(good)
    (tmp_path / "assets" / "labels.json").write_text("[]")
    with pytest.raises(ManifestMismatch, match=r"labels\.json"):
        Engine(tmp_path, variant)


def test_a_variant_for_another_cpu_is_refused(tmp_path: Path) -> None:
    variant = digits(tmp_path, runtime=RuntimeSpec(cpu_class="sparc/vis"))
    with pytest.raises(CpuClassMismatch, match="sparc/vis"):
        Engine(tmp_path, variant)


def test_a_manifest_that_lies_is_refused(tmp_path: Path) -> None:
    variant = digits(tmp_path)
    wrong = TensorSpec(name="logits", datatype="FP32", shape=(-1, 11))
    with pytest.raises(EngineLoadError, match=r"outputs .*11.* are not the graph's .*10"):
        Engine(tmp_path, changed(variant, outputs=[wrong]))
    free = TensorSpec(name="image", datatype="FP32", shape=(-1, 1, 8, -1))  # looser than the graph
    with pytest.raises(EngineLoadError, match=r"inputs .*8, -1.* are not the graph's .*8, 8"):
        Engine(tmp_path, changed(variant, inputs=[free]))
    with pytest.raises(EngineLoadError, match="is torch, not onnx"):
        Engine(tmp_path, changed(variant, format="torch"))
    with pytest.raises(EngineLoadError, match="needs TeraExecutionProvider"):
        Engine(tmp_path, changed(variant, runtime={"provider": "TeraExecutionProvider"}))
    (tmp_path / "model.onnx").write_bytes(b"\x3a\x00")
    with pytest.raises(EngineLoadError, match="cannot load"):
        Engine(tmp_path, changed(variant, files=describe_folder(tmp_path)))
    with pytest.raises(KeyError, match=r"has no file 'model\.onnx'"):
        Engine(tmp_path, changed(variant, files=variant.files[:1]))


@pytest.mark.parametrize(
    ("labels", "message"),
    [('["a"]', "1 labels"), ("{}", "list of strings"), ("[1]", "list of strings"), ("[", "not JSON")],
)
def test_wrong_labels_are_refused(tmp_path: Path, labels: str, message: str) -> None:
    variant = digits(tmp_path)
    (tmp_path / "assets" / "labels.json").write_text(labels)
    with pytest.raises(EngineLoadError, match=message):
        Engine(tmp_path, changed(variant, files=describe_folder(tmp_path)))


def test_inputs_that_may_lack_values_are_served_so(tmp_path: Path) -> None:
    variant = filled(tmp_path / "gaps", missing=["x"])
    engine = Engine(tmp_path / "gaps", variant)
    assert [spec.missing for spec in engine.inputs] == [True] and not variant.inputs[0].missing
    model = LoadedModel(engine, "m")
    assert model.predict_batch([1.0, None, float("nan")])["y"].tolist() == [1, 7, 7]
    with pytest.raises(InvalidRequest, match="takes numbers"):
        model.predict_batch([1.0, None, "x"])

    whole = LoadedModel(Engine(tmp_path / "none", filled(tmp_path / "none")), "m")
    with pytest.raises(InvalidRequest, match="takes numbers"):
        whole.predict_batch([1.0, None])


@pytest.mark.parametrize(("names", "message"), [("{}", "JSON list of names"), ("[", "not JSON")])
def test_a_wrong_list_of_what_may_lack_is_refused(tmp_path: Path, names: str, message: str) -> None:
    variant = filled(tmp_path, missing=["x"])
    (tmp_path / "assets" / "missing.json").write_text(names)
    with pytest.raises(EngineLoadError, match=message):
        Engine(tmp_path, changed(variant, files=describe_folder(tmp_path)))


def test_threads_do_not_spin_after_a_run(tmp_path: Path) -> None:
    engine = Engine(tmp_path, digits(tmp_path, runtime=RuntimeSpec(intra_op_threads=2)))
    engine.run({"image": image(64)})
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.005  # threads that spin take 0.02 s before they give up


# -- safety of the file -----------------------------------------------------------------------------------------
def external(location: str) -> onnx.TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def places(tensor: onnx.TensorProto) -> dict[str, onnx.ModelProto]:
    """The tensor hidden in every place of a model."""
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], [])

    def model(**parts: Any) -> onnx.ModelProto:
        made = onnx.ModelProto(graph=graph)
        node = made.graph.node.add(op_type="Constant")
        for name, value in parts.items():
            attribute = node.attribute.add(name="value")
            field = getattr(attribute, name)
            if hasattr(field, "append"):
                field.append(value)
            else:
                field.CopyFrom(value)
        return made

    sparse = onnx.SparseTensorProto(values=tensor)
    inner = onnx.GraphProto(initializer=[tensor])
    with_initializer, with_sparse, with_function, with_training = (onnx.ModelProto(graph=graph) for _ in range(4))
    with_initializer.graph.initializer.append(tensor)
    with_sparse.graph.sparse_initializer.append(sparse)
    with_function.functions.add().node.add().attribute.add(name="v").t.CopyFrom(tensor)
    with_training.training_info.add().initialization.CopyFrom(inner)
    nested = onnx.GraphProto()
    nested.node.add().attribute.add(name="then").g.CopyFrom(inner)
    return {
        "initializer": with_initializer,
        "sparse initializer": with_sparse,
        "sparse indices": model(sparse_tensor=onnx.SparseTensorProto(indices=tensor)),
        "constant": model(t=tensor),
        "constants": model(tensors=tensor),
        "subgraph": model(g=inner),
        "subgraphs": model(graphs=nested),
        "function": with_function,
        "training": with_training,
    }


PLACES = sorted(places(TensorProto()))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("location", ["weights.bin", "../../etc/passwd", "*/_ORT_MEM_ADDR_/*"])
def test_external_data_is_refused_wherever_it_hides(place: str, location: str) -> None:
    check_onnx(places(constant("w", np.zeros(2, dtype=np.float32)))[place].SerializeToString())
    with pytest.raises(UnsafeModel, match="outside the file"):
        check_onnx(places(external(location))[place].SerializeToString())


def test_external_data_is_refused_without_its_flag_too() -> None:
    tensor = external("x")
    tensor.ClearField("data_location")
    with pytest.raises(UnsafeModel, match="outside the file"):
        check_onnx(places(tensor)["initializer"].SerializeToString())


def test_the_walk_knows_every_way_to_a_tensor() -> None:
    """Against onnx's own schema: a new field that can hold a tensor makes this test fail."""
    known = {d.name: d for d in onnx.onnx_ml_pb2.DESCRIPTOR.message_types_by_name.values()}

    def children(message: Any) -> dict[int, str]:
        return {f.number: f.message_type.name for f in message.fields if f.message_type is not None}

    holding = {"TensorProto"}
    while more := {n for n, d in known.items() if n not in holding and holding & set(children(d).values())}:
        holding |= more
    for name in holding - {"TensorProto"}:
        wanted = {number: child for number, child in children(known[name]).items() if child in holding}
        assert onnx_safety._FIELDS[name] == wanted, name


def test_deep_nesting_ends() -> None:
    def within(field: int, message: bytes) -> bytes:
        size, length = bytearray(), len(message)
        while length >= 0x80:
            size.append(length & 0x7F | 0x80)
            length >>= 7
        return bytes([field << 3 | 2, *size, length]) + message

    graph = b""
    for _ in range(30):
        graph = within(1, within(5, within(6, graph)))  # a node with an attribute that is a graph
    with pytest.raises(UnsafeModel, match="deeper than 64"):
        check_onnx(within(7, graph))


@settings(max_examples=200)
@given(st.binary(max_size=100), st.integers(0, 200), st.integers(0, 255))
def test_garbage_is_unsafe_and_never_anything_else(data: bytes, position: int, byte: int) -> None:
    good = bytearray(places(constant("w", np.zeros(2, dtype=np.float32)))["subgraph"].SerializeToString())
    good[position % len(good)] = byte
    for candidate in (data, bytes(good), bytes(good[: position % len(good)])):
        try:
            check_onnx(candidate)
        except UnsafeModel as error:
            assert str(error)


def test_onnx_runtime_calls_nobody_from_a_users_own_process(tmp_path: Path) -> None:
    """What it has to report it keeps in the home folder first."""
    digits(tmp_path / "v")
    loud = ("CI", *TELEMETRY_OFF)
    theirs = {name: value for name, value in os.environ.items() if name not in loud and not name.startswith("XDG_")}
    code = (
        "import os, sys, winnow; before = dict(os.environ); winnow.load(sys.argv[1])\nassert dict(os.environ) == before"
    )
    home = tmp_path / "home"
    home.mkdir()
    command = [sys.executable, "-P", "-c", code, str(tmp_path / "v" / "model.onnx")]
    subprocess.run(command, env={**theirs, "HOME": str(home)}, check=True)
    assert list(home.rglob("*")) == []
