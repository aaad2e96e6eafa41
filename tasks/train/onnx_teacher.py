"""An ONNX file that a user brings: checked against what the pipeline will ask of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from model_registry.variant import TensorSpec
from tasks.onnx_models.onnx_cost import OnnxCost, onnx_cost
from tasks.onnx_models.onnx_graph import signature, strip
from tasks.running.errors import WeightsMismatch

Specs = tuple[TensorSpec, ...]
_LISTED_WEIGHTS = 3
"""The last IR version whose files must list every weight among the inputs."""


@dataclass(frozen=True)
class OnnxTeacher:
    """The stripped file, its raw inputs and outputs, and its cost at batch 1."""

    data: bytes
    inputs: Specs
    outputs: Specs
    cost: OnnxCost


def read_onnx(data: bytes, said: str, *, wanted: Specs, classes: int | None) -> OnnxTeacher:
    """Check and strip the file.

    Args:
        said: the file as the user named it, for messages.
        wanted: the raw inputs that the workload gives (name, datatype, shape; -1 = free).
        classes: how many classes the first output must score; None = any output will do.

    Raises:
        WeightsMismatch: it is no ONNX model in one file, ONNX Runtime does not take it, its batch is fixed, it wants
            other inputs, answers in FP16, or its first output is not the classes' scores.
    """
    try:
        model = ModelProto.FromString(data)
    except Exception as error:  # protobuf's DecodeError
        raise WeightsMismatch(f"weights {said!r} is no ONNX model: {error}; export it again") from error
    _refuse_external(model, said)
    try:
        onnx.checker.check_model(model)
        inputs, outputs = signature(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise WeightsMismatch(f"weights {said!r} is no valid ONNX model: {error}; export it again") from error
    _unlist_weights(model)
    found = strip(model)
    _session(found, said, model.ir_version)
    wrong = [f"{what} {s.name!r} has shape {list(s.shape)}" for what, s in _fixed_batch(inputs, outputs)]
    if wrong:
        raise WeightsMismatch(
            f"weights {said!r} fixes the batch: {', '.join(wrong)}; the first dimension must be free: export with "
            'dynamic_shapes={"<input>": {0: Dim("batch")}}'
        )
    wrong = list(_misfits(inputs, wanted))
    if wrong:
        raise WeightsMismatch(
            f"weights {said!r} does not take what the workload gives: {'; '.join(wrong)}. The file must take the raw "
            "inputs, its preprocessing inside; or let the workload's batch() give what it takes"
        )
    half = [s.name for s in outputs if s.datatype == "FP16"]
    if half:
        raise WeightsMismatch(
            f"weights {said!r}: its outputs {half} are FP16, which JSON has no form for, so that no endpoint could "
            "answer with them: cast them to FP32 in the file; its weights may stay in fp16"
        )
    first = outputs[0]
    if classes is not None and (first.datatype != "FP32" or not _scores(first.shape[1:], classes)):
        raise WeightsMismatch(
            f"weights {said!r}: its first output {first.name!r} is {first.datatype}{list(first.shape)}; it must be the "
            f"scores of the {classes} classes, FP32[-1, {classes}]: put that output first"
        )
    return OnnxTeacher(found, inputs, outputs, onnx_cost(model))


def answer_shape(teacher: OnnxTeacher, said: str, rows: dict[str, NDArray[np.generic]]) -> tuple[int, ...]:
    """The shape of what the file answers to some rows of the raw inputs, the rows first.

    Raises:
        WeightsMismatch: it fails on them, or does not answer each.
    """
    session = _session(teacher.data, said, onnx.load_from_string(teacher.data).ir_version)
    count = len(next(iter(rows.values())))
    try:
        (answer,) = session.run([teacher.outputs[0].name], rows)
    except Exception as error:  # ONNX Runtime raises a family of classes without a common base
        raise WeightsMismatch(
            f"weights {said!r} fails on {count} rows of the validation split: {_first_line(error)}; try the file on "
            "rows of your data, and export it again"
        ) from error
    if not answer.ndim or len(answer) != count:
        raise WeightsMismatch(
            f"weights {said!r} answers {list(answer.shape)} to {count} rows; its first output must have an answer for "
            "each row"
        )
    shape: tuple[int, ...] = answer.shape
    return shape


def _session(data: bytes, said: str, ir_version: int) -> onnxruntime.InferenceSession:
    """The file in the runtime that would measure and serve it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        newest = re.search(r"max supported IR version: (\d+)", str(error))
        if newest:
            raise WeightsMismatch(
                f"weights {said!r} has IR version {ir_version}; the newest that ONNX Runtime "
                f"{onnxruntime.__version__} takes is {newest[1]}: export it with an older opset, as "
                "torch.onnx.export(opset_version=20) does, or with an older onnx package"
            ) from error
        raise WeightsMismatch(
            f"weights {said!r}: ONNX Runtime {onnxruntime.__version__} does not take it: {_first_line(error)}; export "
            "it with operators and an opset that this runtime has"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]


def _scores(shape: tuple[int, ...], classes: int) -> bool:
    """Whether answers of this shape, without the rows, are a score for each class, in one place or in several; or one
    logit for two classes."""
    return shape[:1] in ((classes,), (-1,)) or (classes == 2 and shape in ((), (1,)))


def _unlist_weights(model: ModelProto) -> None:
    """Weights are no inputs: no client sends them, and a runtime that might get others cannot fold them."""
    model.ir_version = max(model.ir_version, _LISTED_WEIGHTS + 1)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)


def _refuse_external(model: ModelProto, said: str) -> None:
    external = [t.name for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    if external:
        raise WeightsMismatch(
            f"weights {said!r} keeps {len(external)} tensors in another file; save it as one file: "
            "onnx.save(onnx.load(path), path, save_as_external_data=False), or torch.onnx.export(external_data=False)"
        )


def _fixed_batch(inputs: Specs, outputs: Specs) -> list[tuple[str, TensorSpec]]:
    named = [("input", s) for s in inputs] + [("output", s) for s in outputs]
    return [(what, spec) for what, spec in named if not spec.shape or spec.shape[0] != -1]


def _misfits(inputs: Specs, wanted: Specs) -> list[str]:
    takes, gives = ({s.name: s for s in specs} for specs in (inputs, wanted))
    wrong = [f"it has no input {name!r}" for name in gives if name not in takes]
    wrong += [f"it wants an input {name!r}" for name in takes if name not in gives]
    for name in takes.keys() & gives.keys():
        here, there = takes[name], gives[name]
        fits = len(here.shape) == len(there.shape) and all(
            a == b or -1 in (a, b) for a, b in zip(here.shape, there.shape, strict=True)
        )
        if here.datatype != there.datatype or not fits:
            wrong.append(
                f"input {name!r} is {here.datatype}{list(here.shape)}, the data {there.datatype}{list(there.shape)}"
            )
    return wrong
