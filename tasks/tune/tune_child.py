"""The tune stage in its process. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from model_registry.manifest import FileEntry
from model_registry.variant import RuntimeSpec, Variant
from tasks.child import Child, Result
from tasks.onnx_cost import onnx_cost
from tasks.tune.folded_graph import fold, quantized
from tasks.tune.session_options import session_options
from tasks.tune.tuning_process import ask_tuning

_FOLDED = "folded"


def main(child: Child) -> Result:
    """Have each option measured; publish the variant with those that are kept."""
    variant, spec = child.inputs["variant"], child.spec
    inputs = child.store.fetch(FileEntry.model_validate(child.extra["inputs"]), child.workdir / "inputs.npz")
    folder = child.store.materialise(variant.files, child.workdir / "variant")
    file = (folder / "model.onnx").read_bytes()
    changes = session_options(variant.runtime, spec["options"], threads=spec["threads"])
    options: list[dict[str, Any]] = [{"name": name, "runtime": change} for name, change in changes.items()]
    folded = _folded(child, variant, folder) if _FOLDED in spec["options"] else None
    if folded:
        options.append(folded)
    found = ask_tuning(
        {
            "variant": variant.model_dump(mode="json", by_alias=True),
            "folder": str(folder),
            "options": options,
            "inputs": str(inputs),
            "threads": max(spec["threads"], variant.runtime.intra_op_threads),
            "batch": spec["batch"],
            "rounds": spec["rounds"],
            "seconds": spec["seconds"],
            "tolerance": spec["tolerance"],
            "int8": quantized(file) and child.data is not None and child.data.task == "classification",
        },
        child.progress,
    )
    tuned = variant
    if found["kept"]:
        if _FOLDED in found["kept"]:
            file = (child.workdir / _FOLDED / "model.onnx").read_bytes()
        tuned = Variant(
            name=child.extra["name"],
            stage="tune",
            format="onnx",
            files=_files(child, variant, file),
            inputs=variant.inputs,
            outputs=variant.outputs,
            runtime=RuntimeSpec.model_validate(found["runtime"]),
        )
    cost = onnx_cost(onnx.load_from_string(file))
    values = {
        "variants": {tuned.digest: {"name": tuned.name, **asdict(cost), "bytes": len(file)}},
        "kept": found["kept"],
        "options": found["trials"],
        "control": found["control"],
        "confirmed": found["confirmed"],
        "p50_ms": found["p50_ms"],
        "tuned_p50_ms": found["tuned_p50_ms"],
        "threads": tuned.runtime.intra_op_threads,
        "batch": spec["batch"],
    }
    return Result(variants=(tuned,), values=values)


def _folded(child: Child, variant: Variant, folder: Path) -> dict[str, Any] | None:
    """The option of the file with its constants folded, written beside the variant's; None if there is none."""
    file = fold((folder / "model.onnx").read_bytes(), child.workdir)
    if file is None:
        return None
    files = _files(child, variant, file)
    rewritten = Variant.model_validate({**variant.model_dump(), "files": files, "digest": ""})
    return {
        "name": _FOLDED,
        "variant": rewritten.model_dump(mode="json", by_alias=True),
        "folder": str(child.store.materialise(files, child.workdir / _FOLDED)),
    }


def _files(child: Child, variant: Variant, file: bytes) -> tuple[FileEntry, ...]:
    """The variant's files, with this one as its model."""
    model = child.store.publish_bytes(file, "model.onnx")
    return tuple(model if entry.path == model.path else entry for entry in variant.files)
