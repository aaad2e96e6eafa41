"""The compile stage in its process."""

from __future__ import annotations

import importlib

from model_registry.manifest import FileEntry
from model_registry.target_form import TargetForm
from tasks.compile.form_request import FormRequest, MadeForm
from tasks.compile.runtime_answers import runtime_answers
from tasks.evidence.arrays import fetch_arrays
from tasks.running.child import Child, Result

_TARGETS = {
    "xla": ("tasks.compile.xla_target", "make_xla"),
    "fpga": ("tasks.compile.fpga_target", "make_fpga"),
    "halves": ("tasks.compile.halves_target", "make_halves"),
    "cuda": ("tasks.compile.gpu_target", "make_cuda"),
    "tensorrt": ("tasks.compile.gpu_target", "make_tensorrt"),
}
"""Imported only where they are asked for: each has libraries of its own."""


def main(child: Child) -> Result:
    """Make the form, ask it and ONNX Runtime about every row of the test split, and publish what was made."""
    variant, target = child.inputs["variant"], child.spec["target"]
    file = child.store.fetch_bytes(variant.file("model.onnx"))
    columns = fetch_arrays(child.store, FileEntry.model_validate(child.extra["inputs"]))
    inputs, fixed = [columns[spec.name] for spec in variant.inputs], variant.inputs[0].shape[0]
    batch = fixed if fixed > 0 else child.spec["batch"]
    child.progress(0.0, f"{variant.name} for {target}")
    wanted = runtime_answers(file, variant, inputs, batch=batch)
    place = (child.job.seed, child.workdir, child.progress, child.extra.get("gpu", ""))
    request = FormRequest(variant, file, inputs, wanted, batch, *place)
    module, function = _TARGETS[target]
    made: MadeForm = getattr(importlib.import_module(module), function)(request)
    files = tuple(child.store.publish_bytes(content, name) for name, content in made.contents.items())
    served = None
    if made.variant is not None:
        child.store.save_variant(made.variant)
        served, files = made.variant.digest, (*files, *made.variant.files)
    form = TargetForm(target=target, digest=variant.digest, variant=served, split="test", files=files, **made.fields)
    return Result(values={"form": form.model_dump(mode="json", by_alias=True)}, files=files)
