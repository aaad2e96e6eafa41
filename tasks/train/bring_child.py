"""The bring stage in its process: a file of trained weights becomes the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model_registry.manifest import FileEntry, canonical_json
from model_registry.missing_values import MISSING_VALUES
from model_registry.variant import Variant
from tasks.running.child import Child, Result
from tasks.running.errors import WeightsMismatch
from tasks.running.splits import SPLITS, Columns, read_split
from tasks.torch_models.fit_rows import evaluate
from tasks.torch_models.model_structure import ModelStructure
from tasks.torch_models.torch_variant import (
    build,
    input_specs,
    load_tensors,
    parameter_count,
    save,
    tensor_specs,
    untied,
)
from tasks.train.weights_file import kind_of, read_weights
from tasks.workloads.task_check import SettledTask, labels_file, settle_task, targets_of
from tasks.workloads.workload import Workload, load_workload

_ROWS = 3


def main(child: Child) -> Result:
    """Read the file as what it is, and check that it fits workload and data."""
    workload = load_workload(child.job.workload, child.data.known)
    splits = {name: read_split(child.store, child.data, name) for name in SPLITS}
    if child.spec["weights"] is None:
        return _bring_weights(child, None, workload, splits)
    path = child.store.fetch(FileEntry.model_validate(child.extra["file"]), child.workdir / "weights")
    if kind_of(path) == "onnx":
        return _bring_onnx(child, path, workload, splits)
    return _bring_weights(child, path, workload, splits)


def _bring_weights(child: Child, path: Path | None, workload: Workload, splits: dict[str, Columns]) -> Result:
    scale = child.spec["scale"]
    model = build(workload, "teacher", scale, seed=child.job.seed)
    if path is not None:
        _load_weights(model, path, child.spec, workload)
    validation = splits["validation"]
    _, outputs = tensor_specs(model.eval(), workload=workload, sample=validation)
    task = _task(workload, outputs[0].shape, splits)
    workload = Workload(workload.user, workload.ref.model_copy(update={"task": task.kind}))
    child.progress(0.5, "weights fit, evaluating")
    loss, metric, _ = evaluate(model, workload=workload, columns=validation, device=child.job.device)
    variant = save(
        child.store,
        model,
        workload=workload,
        structure=ModelStructure(role="teacher", scale=child.spec["scale"]),
        sample=validation,
        name="teacher",
        stage="bring",
    )
    values = {"parameters": parameter_count(model), "val_metric": metric, "val_loss": loss, "task": task.as_json()}
    return Result(variants=(variant,), values=values)


def _load_weights(model: nn.Module, path: Path, spec: Mapping[str, Any], workload: Workload) -> None:
    scale, said = spec["scale"], spec["weights"]
    tensors = read_weights(path, said)
    for alias, name in untied(model)[1].items():  # formats without sharing store tied tensors under one name
        if alias not in tensors and name in tensors:
            tensors[alias] = tensors[name]
    try:
        load_tensors(model, tensors)
    except WeightsMismatch as error:
        raise WeightsMismatch(
            f"weights {said!r} against {workload.ref.path}.model('teacher', **{scale}): {error.message}. Give the "
            "scale they were trained with under teacher.scale, or rename the tensors",
            **error.details,
        ) from error


def _bring_onnx(child: Child, path: Path, workload: Workload, splits: dict[str, Columns]) -> Result:
    from tasks.train.onnx_teacher import answer_shape, read_onnx

    if child.spec["scale"]:
        raise WeightsMismatch(
            f"weights {child.spec['weights']!r} is an ONNX file, which has its own architecture; remove teacher.scale"
        )
    labels = workload.labels()
    found = read_onnx(
        path.read_bytes(),
        child.spec["weights"],
        wanted=input_specs(workload, splits["validation"]),
        classes=len(labels) if labels is not None else None,
    )
    few = {name: torch.from_numpy(values[:_ROWS].copy()) for name, values in splits["validation"].items()}
    rows = {name: value.numpy() for name, value in workload.batch(few)[0].items()}
    task = _task(workload, answer_shape(found, child.spec["weights"], rows), splits)
    files = [child.store.publish_bytes(found.data, "model.onnx")]
    asset = labels_file(task.kind)
    own = {"label", "probability", "probabilities"} & {o.name for o in found.outputs}
    if labels is not None and asset is not None and not own:
        files.append(child.store.publish_bytes(canonical_json(labels), asset))
    missing = child.data.inputs_with_gaps(found.inputs)
    if missing:
        files.append(child.store.publish_bytes(canonical_json(missing), MISSING_VALUES))
    variant = Variant(
        name="teacher",
        stage="bring",
        format="onnx",
        files=tuple(files),
        inputs=found.inputs,
        outputs=found.outputs,
    )
    values = {"parameters": found.cost.parameters, "macs": found.cost.macs, "task": task.as_json()}
    return Result(variants=(variant,), values=values)


def _task(workload: Workload, answer: tuple[int, ...], splits: dict[str, Columns]) -> SettledTask:
    """What is evaluated and written depends on what the workload learns."""
    return settle_task(workload, answer, {name: targets_of(workload, columns) for name, columns in splits.items()})
