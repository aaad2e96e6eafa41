"""Targets for GPUs, as far as they can be looked at without one: what is asked of ONNX Runtime, and what is refused.

The path of a proof is walked with the CPU's provider in the place of the GPU's.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from onnx_models import constant, digits, save
from test_quantize_symmetric import digits as rows_of_digits
from test_quantize_symmetric import made, network

from flows.exporting.exported_version import ExportedVersion
from flows.exporting.target_files import write_target
from model_registry.cpu_class import cpu_class
from model_registry.gpu_class import GpuClassMismatch, NoGpu
from model_registry.manifest import describe_folder
from model_registry.provider_options import CUDA, TENSORRT, engine_folder, provider_options
from model_registry.store import Store
from model_registry.target_form import TargetForm, save_target
from model_registry.variant import RuntimeSpec, TensorSpec, Variant
from serving import engine as engines
from serving.bound_session import BoundSession, fixed_shapes
from serving.engine import Engine
from serving.exceptions import EngineLoadError
from tasks.compile import compile_child, gpu_provider, gpu_target, require_targets
from tasks.compile.form_request import FormRequest
from tasks.compile.gpu_target import file_kind, gpu_variant, make_cuda, make_tensorrt
from tasks.compile.runtime_answers import runtime_answers
from tasks.data.materialise import npz_bytes
from tasks.quantize.agreement import top_answers
from tasks.quantize.half_precision import to_half
from tasks.running.errors import SpecError, TargetUnsupported

if TYPE_CHECKING:
    from tasks.running.child import Child

H200 = "nvidia-h200/sm90/driver580"


def served(folder: Path, file: bytes, batch: int = -1) -> Variant:
    folder.mkdir()
    (folder / "model.onnx").write_bytes(file)
    return Variant(
        name="net.fp32",
        stage="export",
        format="onnx",
        files=describe_folder(folder),
        inputs=(TensorSpec(name="image", datatype="FP32", shape=(batch, 1, 8, 8)),),
        outputs=(TensorSpec(name="logits", datatype="FP32", shape=(batch, 10)),),
        runtime=RuntimeSpec(cpu_class=cpu_class()),
    )


def request(folder: Path, file: bytes, gpu: str = "") -> FormRequest:
    variant, images = served(folder / "variant", file), rows_of_digits()[0][:200]
    wanted = runtime_answers(file, variant, [images], batch=32)
    return FormRequest(variant, file, [images], wanted, 32, 0, folder, lambda fraction, text: None, gpu)


def test_what_the_providers_are_told(tmp_path: Path) -> None:
    assert provider_options(RuntimeSpec()) == {}
    cuda = provider_options(RuntimeSpec(provider=CUDA))
    assert cuda == {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "enable_cuda_graph": "0"}
    assert provider_options(RuntimeSpec(provider=CUDA, precision="tf32"))["use_tf32"] == "1"
    assert provider_options(RuntimeSpec(provider=CUDA, cuda_graph=True))["enable_cuda_graph"] == "1"
    for precision in ("fp16", "bf16", "int8"):
        told = provider_options(RuntimeSpec.model_validate({"provider": TENSORRT, "precision": precision}))
        assert {name for name, value in told.items() if value == "1"} == {f"trt_{precision}_enable"}
    kept = provider_options(RuntimeSpec(provider=TENSORRT), tmp_path)
    assert kept["trt_engine_cache_enable"] == "1" and kept["trt_engine_cache_path"] == str(tmp_path)


def test_compiled_engines_lie_beside_a_cached_variant_alone(tmp_path: Path) -> None:
    files = tmp_path / "files"
    assert engine_folder(files, H200) is None
    (tmp_path / "variant.json").touch()
    assert engine_folder(files, H200) == tmp_path / "engines" / "nvidia-h200_sm90_driver580"


def test_the_form_says_what_is_computed(tmp_path: Path) -> None:
    forms = made(tmp_path)
    int8, symmetric = (onnx.load_from_string(forms[name].data) for name in ("static", "symmetric"))
    half = to_half(onnx.load_from_string(network()))
    kinds = [file_kind(model) for model in (onnx.load_from_string(network()), int8, symmetric, half)]
    assert kinds == ["fp32", "int8", "int8", "fp16"]
    variant = digits(tmp_path / "variant")
    runtimes = {
        (target, kind): gpu_variant(variant, kind, target, H200).runtime
        for target in gpu_provider.PROVIDERS
        for kind in ("fp32", "fp16", "int8")
    }
    assert {r.gpu_class for r in runtimes.values()} == {H200}
    assert {r.precision for (target, _), r in runtimes.items() if target == "cuda"} == {"fp32"}
    assert [runtimes["tensorrt", kind].precision for kind in ("fp32", "fp16", "int8")] == ["tf32", "fp16", "int8"]
    assert not any(r.cuda_graph for r in runtimes.values())  # the batch is free
    one = gpu_variant(variant, "fp32", "cuda", H200)
    assert one.name == "digits.cuda" and one.digest != variant.digest and one.files == variant.files
    assert Variant.from_json(one.to_json()) == one


def test_fp16_answers_as_fp32_does_but_for_rounding() -> None:
    feeds = {"image": rows_of_digits()[0]}
    wanted = top_answers(network(), feeds)
    found = top_answers(to_half(onnx.load_from_string(network())).SerializeToString(), feeds)
    gap = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert found.dtype == np.float32 and 0 < gap < gpu_target._TOLERANCES["fp16"]
    assert (found.argmax(axis=1) == wanted.argmax(axis=1)).mean() > 0.995


def compiled(store: Store, folder: Path, variant: Variant, file: bytes) -> TargetForm:
    """By the stage's own process, but in this one."""
    store.publish_bytes(file, "model.onnx")
    rows = store.publish_bytes(npz_bytes({"image": rows_of_digits()[0][:200]}), "inputs.npz")
    child = SimpleNamespace(
        inputs={"variant": variant},
        spec={"target": "cuda", "batch": 32},
        extra={"inputs": rows.model_dump(mode="json")},
        job=SimpleNamespace(seed=0),
        store=store,
        workdir=folder,
        progress=lambda fraction, text: None,
    )
    return TargetForm.model_validate(compile_child.main(cast("Child", child)).values["form"])


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both targets run by the CPU's provider."""
    monkeypatch.setattr(gpu_target, "PROVIDERS", dict.fromkeys(gpu_provider.PROVIDERS, "CPUExecutionProvider"))


@pytest.mark.usefixtures("on_cpu")
def test_a_form_is_proven_timed_stored_and_exported(tmp_path: Path, store: Store) -> None:
    variant = served(tmp_path / "variant", network())
    form = compiled(store, tmp_path, variant, network())
    assert (form.state, form.differing, form.values, form.tolerance) == ("proven", 0, 2000, 1e-4)
    assert form.facts["answers"] == "0 of 200 rows get another class than on the CPU"
    assert "times as fast as on this machine's CPU" in form.facts["latency"]
    assert form.variant is not None and form.variant != form.digest == variant.digest
    on_gpu = store.load_variant(form.variant)
    assert on_gpu.files == variant.files and on_gpu.runtime.cpu_class is None and not on_gpu.runtime.cuda_graph

    save_target(store, form)
    assert write_target(ExportedVersion("net", 3, variant, store.uri), store, tmp_path / "gpu", "cuda") == form
    written = {file.name: file.read_bytes() for file in (tmp_path / "gpu").iterdir()}
    assert sorted(written) == ["ask.py", "model.onnx", "proof.json", "variant.json"]
    assert Variant.from_json(written["variant.json"]) == on_gpu
    text = written["ask.py"].decode()
    assert f"winnow serve --pin net/3@{form.variant}" in text and 'np.zeros([1, 1, 8, 8], "float32")' in text
    compile(text, "ask.py", "exec")


@pytest.mark.usefixtures("on_cpu")
def test_a_file_for_one_row_is_asked_row_by_row(tmp_path: Path, store: Store) -> None:
    model = onnx.load_from_string(network())
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    file = model.SerializeToString()
    form = compiled(store, tmp_path, served(tmp_path / "variant", file, batch=1), file)
    assert form.state == "proven" and form.variant is not None and store.load_variant(form.variant).runtime.cuda_graph


@pytest.mark.usefixtures("on_cpu")
def test_answers_beyond_the_tolerance_are_refused(tmp_path: Path) -> None:
    asked = request(tmp_path, network())
    other = [asked.wanted[0] * np.float32(1.001)]
    form = make_cuda(replace(asked, wanted=other))
    assert form.fields["state"] == "refused" and "0.0001 is allowed" in form.fields["reason"]
    assert form.variant is None and form.contents == {}


@pytest.mark.usefixtures("on_cpu")
def test_an_engine_that_refuses_says_why(tmp_path: Path) -> None:
    with pytest.raises(
        TargetUnsupported, match=f"target cuda: .*was proven on the GPU {H200}, and this machine has none"
    ):
        make_cuda(request(tmp_path, network(), H200))


def test_tensorrt_takes_the_symmetric_form_alone(tmp_path: Path) -> None:
    forms = made(tmp_path)
    gpu_target.require_zero_points_of_zero(onnx.load_from_string(forms["symmetric"].data))
    with pytest.raises(TargetUnsupported, match=r"zero points of 0 alone, and .*quantize: \{methods: \[symmetric\]\}"):
        make_tensorrt(request(tmp_path, forms["static"].data, H200))


def test_a_machine_without_one_is_said_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise NoGpu("NVIDIA's driver is not installed")

    monkeypatch.setattr(gpu_provider, "gpu_class", none)
    for target in gpu_provider.PROVIDERS:
        with pytest.raises(
            SpecError, match=f"targets: {target} needs an NVIDIA GPU: NVIDIA's driver is not installed; "
        ):
            require_targets([target])
    monkeypatch.setattr(gpu_provider, "gpu_class", lambda: H200)
    assert CUDA not in onnxruntime.get_available_providers()
    with pytest.raises(
        SpecError, match=r"cuda needs CUDAExecutionProvider, and onnxruntime .* offers .*onnxruntime-gpu=="
    ):
        require_targets(["cuda"])
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    assert gpu_provider.require_gpu("cuda") == H200


def test_every_target_has_its_maker() -> None:
    assert {"cuda", "tensorrt"} == set(gpu_provider.PROVIDERS) <= set(compile_child._TARGETS)


def test_an_engine_refuses_before_it_reads_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = digits(tmp_path / "variant", runtime=RuntimeSpec(gpu_class=H200))
    with pytest.raises(GpuClassMismatch, match="and this machine has none"):
        Engine(tmp_path / "nowhere", variant)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    monkeypatch.setattr(engines, "require_gpu_class", lambda wanted, what: None)
    with pytest.raises(EngineLoadError, match="names no GPU that it was proven on"):
        Engine(tmp_path / "nowhere", digits(tmp_path / "a", runtime=RuntimeSpec(provider=CUDA)))
    free = RuntimeSpec(provider=CUDA, gpu_class=H200, cuda_graph=True)
    with pytest.raises(EngineLoadError, match="replays one shape, and has free dimensions: fix them, the batch too"):
        Engine(tmp_path / "nowhere", digits(tmp_path / "b", runtime=free))


def test_a_provider_that_is_missing_is_no_reason_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime would print a line and answer on the CPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    monkeypatch.setattr(engines, "require_gpu_class", lambda wanted, what: None)
    variant = digits(tmp_path, runtime=RuntimeSpec(provider=CUDA, gpu_class=H200))
    with pytest.raises(EngineLoadError, match=r"cannot load variant|did not start"):
        Engine(tmp_path, variant)


def test_no_other_provider_is_tried_and_compiled_engines_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []

    def refuse(data: bytes, options: Any, **others: Any) -> None:
        told.append(others | {"strict": options.get_session_config_entry("session.disable_cpu_ep_fallback")})
        raise RuntimeError("no TensorRT here")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT])
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    monkeypatch.setattr(engines, "require_gpu_class", lambda wanted, what: None)
    variant = digits(tmp_path / "files", runtime=RuntimeSpec(provider=TENSORRT, gpu_class=H200, precision="fp16"))
    (tmp_path / "variant.json").write_bytes(variant.to_json())  # as the endpoint's cache has it
    with pytest.raises(EngineLoadError, match="cannot load variant 'digits': no TensorRT here"):
        Engine(tmp_path / "files", variant)
    kept = tmp_path / "engines" / "nvidia-h200_sm90_driver580"
    assert kept.is_dir() and told[0]["providers"] == [(TENSORRT, provider_options(variant.runtime, kept))]
    assert (told[0]["enable_fallback"], told[0]["strict"]) == (0, "1")


def test_a_bound_session_answers_as_a_free_one(tmp_path: Path) -> None:
    x, y = (TensorSpec(name=name, datatype="FP32", shape=(4, 3)) for name in "xy")
    variant = save(tmp_path, [helper.make_node("Mul", ["x", "two"], ["y"])], [x], [y], [constant("two", np.float32(2))])
    assert fixed_shapes((*variant.inputs, *variant.outputs)) and not fixed_shapes(digits(tmp_path / "free").inputs)
    session = Engine(tmp_path, variant).session
    bound, rows = BoundSession(session, [x], [y], device="cpu"), np.arange(12, dtype=np.float32).reshape(4, 3)
    (first,) = bound.run(["y"], {"x": rows})
    (second,) = bound.run(["y"], {"x": rows.T.reshape(3, 4).T})  # not contiguous
    np.testing.assert_array_equal(first, 2 * rows)  # as it was
    np.testing.assert_array_equal(second, 2 * rows.T.reshape(3, 4).T)
    for wrong in (rows[:2], rows.astype(np.float64)):
        with pytest.raises(ValueError, match=r"input 'x' is float.*; this variant takes FP32 \[4, 3\] alone"):
            bound.run(["y"], {"x": wrong})
