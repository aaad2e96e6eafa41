"""The bring stage in its process: a file of trained weights becomes the teacher."""

from __future__ import annotations

from pathlib import Path

from model_registry.manifest import FileEntry, canonical_json
from model_registry.variant import Variant
from tasks.running.child import Child, Result
from tasks.running.errors import WeightsMismatch
from tasks.running.splits import Columns, read_split
from tasks.torch_models.fit_rows import evaluate
from tasks.torch_models.model_structure import ModelStructure
from tasks.torch_models.torch_variant import build, input_specs, load_tensors, parameter_count, save, untied
from tasks.train.weights_file import kind_of, read_weights
from tasks.workloads.workload import Workload, load_workload


def main(child: Child) -> Result:
    """Read the file as what it is, and check that it fits workload and data."""
    workload = load_workload(child.job.workload)
    validation = read_split(child.store, child.data, "validation")
    path = child.store.fetch(FileEntry.model_validate(child.extra["file"]), child.workdir / "weights")
    if kind_of(path) == "onnx":
        return _bring_onnx(child, path, workload, validation)
    return _bring_weights(child, path, workload, validation)


def _bring_weights(child: Child, path: Path, workload: Workload, validation: Columns) -> Result:
    scale, said = child.spec["scale"], child.spec["weights"]
    model = build(workload, "teacher", scale)
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
    child.progress(0.5, "weights fit, evaluating")
    loss, metric, _ = evaluate(model, workload=workload, columns=validation, device=child.job.device)
    variant = save(
        child.store,
        model,
        workload=workload,
        structure=ModelStructure(role="teacher", scale=scale),
        sample=validation,
        name="teacher",
        stage="bring",
    )
    values = {"parameters": parameter_count(model), "val_metric": metric, "val_loss": loss}
    return Result(variants=(variant,), values=values)


def _bring_onnx(child: Child, path: Path, workload: Workload, validation: Columns) -> Result:
    from tasks.train.onnx_teacher import read_onnx

    if child.spec["scale"]:
        raise WeightsMismatch(
            f"weights {child.spec['weights']!r} is an ONNX file, which has its own architecture; remove teacher.scale"
        )
    labels = workload.labels()
    found = read_onnx(
        path.read_bytes(),
        child.spec["weights"],
        wanted=input_specs(workload, validation),
        classes=len(labels) if labels is not None else None,
    )
    files = [child.store.publish_bytes(found.data, "model.onnx")]
    if labels is not None and not {"label", "probability"} & {o.name for o in found.outputs}:
        files.append(child.store.publish_bytes(canonical_json(labels), "assets/labels.json"))
    variant = Variant(
        name="teacher",
        stage="bring",
        format="onnx",
        files=tuple(files),
        inputs=found.inputs,
        outputs=found.outputs,
    )
    return Result(variants=(variant,), values={"parameters": found.cost.parameters, "macs": found.cost.macs})
