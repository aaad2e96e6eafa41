"""A registered version as a model repository of Triton Inference Server: its ONNX file, and ``config.pbtxt``.

Sources: Triton's ``model_config.proto``; the README of its ONNX Runtime backend for names of parameters and levels.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from flows.exporting.exported_version import ExportedVersion, NotExportable
from model_registry.answer_labels import ONE_OF_SEVERAL
from model_registry.cpu_class import CpuClassMismatch
from model_registry.store import Store
from model_registry.text_input import DECODER
from model_registry.variant import RuntimeSpec, TensorSpec, Variant
from serving.engine import Engine
from serving.engines.batch_certificate import BatchCertificate, certify

_ROWS = 64
"""Most rows that run together, as in Winnow's own endpoint."""
_LEVELS = {"disabled": 2, "basic": -1, "extended": 1}
"""``all`` is what Triton does where nothing is said."""


def write_triton_repository(exported: ExportedVersion, store: Store, folder: Path) -> list[str]:
    """Write ``MODEL/config.pbtxt`` and ``MODEL/VERSION/model.onnx`` into the folder, and labels where there are some.

    Whether Triton may run requests together is measured here, as the endpoint does when it loads a version.

    Returns:
        What Triton does otherwise than Winnow's endpoint, a sentence each.

    Raises:
        NotExportable: Triton cannot run it.
        EngineLoadError: ONNX Runtime refuses the file.
        StoreError: a file of it is not in the store, or is damaged there.
    """
    variant, model = exported.variant, folder / exported.model
    if any(file.path == DECODER for file in variant.files):
        raise NotExportable(
            f"version {exported.version} of {exported.model} continues text step by step, which Triton's backend for "
            "ONNX files does not: export it --to kubernetes or --to kserve, which run Winnow's endpoint"
        )
    with tempfile.TemporaryDirectory(prefix="winnow-export-") as there:
        files = store.materialise(variant.files, Path(there))
        data = (files / "model.onnx").read_bytes()
        certificate = _certificate(files, variant, data)
        labels = files / ONE_OF_SEVERAL
        named = json.loads(labels.read_bytes()) if labels.exists() else None
    (model / str(exported.version)).mkdir(parents=True)
    (model / str(exported.version) / "model.onnx").write_bytes(data)
    if named is not None:
        (model / "labels.txt").write_text("".join(f"{label}\n" for label in map(_one_line, named)))
    (model / "config.pbtxt").write_text(triton_config(exported, certificate, labelled=named is not None))
    return _differences(variant, certificate)


def triton_config(exported: ExportedVersion, certificate: BatchCertificate, *, labelled: bool) -> str:
    """The model's configuration, in protobuf's text form.

    Args:
        labelled: whether ``labels.txt`` lies beside it, for the first output.
    """
    variant, runtime = exported.variant, exported.variant.runtime
    batched = certificate.joins
    parts = [
        f"# Version {exported.version} of {exported.model}, {variant.digest}.",
        f"# Batching: {certificate.why}.",
        f"name: {json.dumps(exported.model)}",
        'backend: "onnxruntime"',
        'default_model_filename: "model.onnx"',
        f"max_batch_size: {_ROWS if batched else 0}",
        *(_tensor("input", spec, batched) for spec in variant.inputs),
        *(_tensor("output", spec, batched, labels=labelled and spec is variant.outputs[0]) for spec in variant.outputs),
        "instance_group [ { kind: KIND_CPU count: 1 } ]",
        *(["dynamic_batching { }"] if batched else []),
        *_optimization(runtime),
        *(
            f"parameters {{ key: {json.dumps(key)} value: {{ string_value: {json.dumps(value)} }} }}"
            for key, value in (
                ("intra_op_thread_count", str(runtime.intra_op_threads)),
                ("inter_op_thread_count", str(runtime.inter_op_threads)),
                ("enable_mem_arena", str(int(runtime.arena))),
            )
        ),
    ]
    return "\n".join(parts) + "\n"


def _certificate(folder: Path, variant: Variant, data: bytes) -> BatchCertificate:
    try:
        engine = Engine(folder, variant)
    except CpuClassMismatch:
        return BatchCertificate("none", "this machine cannot run it, so that nobody could measure it")
    engine.warm_up()
    return certify(engine, data)


def _tensor(kind: str, spec: TensorSpec, batched: bool, *, labels: bool = False) -> str:
    dims = list(spec.shape[1:] if batched else spec.shape)
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    # Triton knows no tensor without a dimension: it asks clients for one of size 1, and takes it away.
    reshape = "" if dims else " reshape: { shape: [ ] }"
    file = ' label_filename: "labels.txt"' if labels else ""
    return (
        f"{kind} [ {{ name: {json.dumps(spec.name)} data_type: TYPE_{datatype} dims: {dims or [1]}{reshape}{file} }} ]"
    )


def _optimization(runtime: RuntimeSpec) -> list[str]:
    level = _LEVELS.get(runtime.graph_optimization)
    return [] if level is None else [f"optimization {{ graph: {{ level: {level} }} }}"]


def _differences(variant: Variant, certificate: BatchCertificate) -> list[str]:
    found = []
    if not certificate.joins:
        found.append(f"Triton runs its requests one by one: {certificate.why}")
    if variant.runtime.disabled_optimizers:
        names = ", ".join(variant.runtime.disabled_optimizers)
        found.append(
            f"Triton has no setting for the optimizers that the variant leaves out ({names}): measure it there"
        )
    if not variant.runtime.spinning and variant.runtime.intra_op_threads > 1:
        found.append("Triton has no setting against spinning threads: they take CPU time between requests")
    if any(file.path == ONE_OF_SEVERAL for file in variant.files):
        found.append(
            "Triton answers labels only to requests that ask for classification; 'label' is Winnow's own output"
        )
    if variant.runtime.cpu_class is not None:
        found.append(f"Triton does not check the CPU class: run it on {variant.runtime.cpu_class} alone")
    return found


def _one_line(label: str) -> str:
    return " ".join(label.split())
