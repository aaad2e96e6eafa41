"""Targets cuda and tensorrt: the variant's file on a GPU, asked through the engine that serves it.

What is made is a variant of the same files with another runtime. It is compared with the answers of the CPU, and timed
in turns with the variant there.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from model_registry.answering import AnsweringFailed, AskedProcess
from model_registry.provider_options import TENSORRT
from model_registry.target_form import Target
from model_registry.variant import Variant
from tasks.compile.answer_proof import prove
from tasks.compile.form_request import FormRequest, MadeForm
from tasks.compile.gpu_provider import PROVIDERS
from tasks.evidence.number_text import count_text
from tasks.running.errors import TargetUnsupported
from tasks.workloads.sample_scores import top_classes

_TOLERANCES = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2}
"""Relative to the largest answer. fp32: cuDNN and the CPU add in other orders, some by other algorithms. tf32 and fp16
round each factor to 11 bits, 5e-4 of it."""
_STEPS = 5e-2
"""Likewise for int8: a value in the middle between two steps falls to either, and a step is 1/127 of a range."""
_ARITHMETIC = {
    ("cuda", "int8"): "fp32 from int8 weights and activations: the CUDA provider has no products of int8",
    ("tensorrt", "int8"): "int8",
    ("cuda", "fp16"): "fp16",
    ("tensorrt", "fp16"): "fp16",
    ("cuda", "fp32"): "fp32",
    ("tensorrt", "fp32"): "tf32",
}


def make_cuda(asked: FormRequest) -> MadeForm:
    """ONNX Runtime's CUDA provider.

    Raises:
        TargetUnsupported: it does not take the whole graph; says what ONNX Runtime says.
    """
    return _make(asked, "cuda")


def make_tensorrt(asked: FormRequest) -> MadeForm:
    """ONNX Runtime's TensorRT provider.

    Raises:
        TargetUnsupported: the file is of an int8 form that TensorRT does not take, or as :func:`make_cuda`.
    """
    return _make(asked, "tensorrt")


def gpu_variant(variant: Variant, kind: str, target: Target, gpu: str) -> Variant:
    """The same files with the runtime of the target.

    Args:
        kind: what the file holds, see :func:`file_kind`.
        gpu: class of the GPU it is for.
    """
    runtime = variant.runtime.model_copy(
        update={
            "provider": PROVIDERS[target],
            "precision": {"fp32": "tf32"}.get(kind, kind) if PROVIDERS[target] == TENSORRT else "fp32",
            "cuda_graph": all(-1 not in spec.shape for spec in (*variant.inputs, *variant.outputs)),
            "gpu_class": gpu or None,
            "cpu_class": None,
        }
    )
    return _resealed(variant, name=f"{variant.name}.{target}", runtime=runtime)


def file_kind(model: ModelProto) -> str:
    """What a file asks a GPU to compute in: ``int8`` (activations are rounded), ``fp16`` or ``fp32``."""
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return "int8"
    halves = any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)
    return "fp16" if halves else "fp32"


def require_zero_points_of_zero(model: ModelProto) -> None:
    """TensorRT's parser takes no other (NVIDIA/TensorRT issue 2774); it would say so after minutes, without a remedy.

    Raises:
        TargetUnsupported: names the first node that has another one.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
            zero = tensors.get(node.input[2])
            if zero is None or zero.data_type != TensorProto.INT8 or np.any(numpy_helper.to_array(zero)):
                raise TargetUnsupported(
                    f"target tensorrt takes int8 with zero points of 0 alone, and {node.op_type} {node.name!r} has "
                    "another one or another type; make the form with quantize: {methods: [symmetric]}"
                )


def _make(asked: FormRequest, target: Target) -> MadeForm:
    model = onnx.load_from_string(asked.file)
    kind = file_kind(model)
    if target == "tensorrt" and kind == "int8":
        require_zero_points_of_zero(model)
    variant = gpu_variant(asked.variant, kind, target, asked.gpu)
    asked.progress(0.2, f"asking {target} about {len(asked.inputs[0])} rows")
    found, answers = _ask_engine(asked, variant, target)
    arithmetic = _ARITHMETIC[target, kind]
    proof = prove(
        lambda *inputs: (answers,),
        asked.inputs,
        asked.wanted[:1],
        batch=len(answers),
        tolerance=_STEPS if kind == "int8" else _TOLERANCES.get(arithmetic, _TOLERANCES["fp32"]),
    )
    fields = {
        "device": asked.gpu,
        "facts": {"arithmetic": arithmetic, **_answers(answers, asked.wanted[0]), "latency": _latency(found)},
        "versions": {"onnxruntime": version("onnxruntime")},
        **proof,
    }
    if fields["state"] != "proven":
        return MadeForm(fields, {})  # there is nothing that may be served
    return MadeForm(fields, {"variant.json": variant.to_json()}, variant)


def _ask_engine(asked: FormRequest, variant: Variant, target: Target) -> tuple[dict[str, Any], NDArray[Any]]:
    """What the probe measured, and the first output of every row. No assets: it is the graph that is asked."""
    folder, rows, answers = (asked.folder / name for name in ("served", "rows.npz", "answers.npy"))
    folder.mkdir()
    (folder / "model.onnx").write_bytes(asked.file)
    bare = [_resealed(each, files=(each.file("model.onnx"),)) for each in (variant, asked.variant)]
    documents = [each.model_dump(mode="json", by_alias=True) for each in bare]
    names = [spec.name for spec in variant.inputs]
    np.savez(rows, **dict(zip(names, asked.inputs, strict=True)))  # type: ignore[arg-type]  # names are no keywords
    process = AskedProcess("serving.probe")
    try:
        found = process.ask(
            {
                "variant": documents[0],
                "folder": str(folder),
                "baseline": documents[1],
                "baseline_folder": str(folder),
                "inputs": str(rows),
                "outputs": str(answers),
                "batch": max(variant.inputs[0].shape[0], 1),
                "predict_batch": asked.batch,
                "threads": asked.variant.runtime.intra_op_threads,
                "seed": asked.seed,
            }
        )
    except AnsweringFailed as error:
        raise TargetUnsupported(f"target {target}: {error}") from error
    finally:
        process.close()
    return found, np.load(answers, allow_pickle=False)


def _resealed(variant: Variant, **changes: Any) -> Variant:
    """A copy with changes, and its own digest."""
    return Variant.model_validate({**variant.model_dump(by_alias=True), **changes, "digest": ""})


def _answers(found: NDArray[Any], wanted: NDArray[Any]) -> dict[str, str]:
    if wanted.ndim != 2 or wanted.shape[1] < 2:
        return {}
    changed = int((top_classes(found) != top_classes(wanted)).sum())
    return {"answers": f"{count_text(changed)} of {count_text(len(wanted))} rows get another class than on the CPU"}


def _latency(found: dict[str, Any]) -> str:
    text = f"{found['p50_ms']:.3g} ms for a batch of {found['batch']} (p95 {found['p95_ms']:.3g} ms)"
    faster = found["speedup"]
    if faster is None:
        return text
    low, high = faster["interval"]
    return f"{text}, {faster['value']:.3g} times as fast as on this machine's CPU ({low:.3g} to {high:.3g})"
