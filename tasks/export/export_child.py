"""The export stage in its process."""

from __future__ import annotations

from dataclasses import asdict

import onnx
import torch

from model_registry.answer_labels import ONE_PER_WORD
from model_registry.decoder_form import TOKENS
from model_registry.form_name import form_name
from model_registry.manifest import FileEntry, canonical_json
from model_registry.missing_values import MISSING_VALUES
from model_registry.text_input import CHAT_TEMPLATE, DECODER, TEXT_INPUT, TOKENIZER, TextInput
from model_registry.variant import RuntimeSpec, TensorSpec, Variant
from tasks.export.decoder_onnx import decoder_form, write_decoder
from tasks.export.decoder_parity import check_decoder_parity
from tasks.export.onnx_export import OPSET, export_onnx
from tasks.export.parity import BATCHES, check_parity
from tasks.export.raw_inputs import RawInputs
from tasks.onnx_models.onnx_cost import onnx_cost
from tasks.onnx_models.onnx_graph import signature
from tasks.running.child import Child, Result
from tasks.running.errors import WorkloadError
from tasks.running.splits import read_split
from tasks.torch_models.torch_variant import load, parameter_count
from tasks.workloads.causal_decoder import CausalDecoder
from tasks.workloads.task_check import labels_file
from tasks.workloads.workload import Workload, causal_assets, load_workload, own_tokenizer

_ROWS = max(BATCHES)


def main(child: Child) -> Result:
    """Export the parent, prove it equal to the model, and publish it with its labels."""
    parent = child.inputs["parent"]
    workload = load_workload(child.job.workload, child.data.known)
    child.progress(0.1, f"loading {parent.name}")
    model = load(child.store, parent, workload=workload)
    columns = read_split(child.store, child.data, "validation")
    rows = {name: torch.from_numpy(values[:_ROWS].copy()) for name, values in columns.items()}
    inputs, _ = workload.batch(rows)
    if isinstance(model, CausalDecoder):
        return _decoder(child, model, workload, inputs[TOKENS])
    module = RawInputs(model, workload.preprocess, tuple(inputs))

    child.progress(0.2, f"tracing {parent.name}")
    (output,) = (spec.name for spec in parent.outputs)
    data = export_onnx(module, inputs, output=output, dynamic=workload.dynamic_dims())
    child.progress(0.8, "comparing with ONNX Runtime")
    parity = check_parity(module, data, inputs, tolerance=child.spec["tolerance"])
    graph = onnx.load_from_string(data)
    specs, answers = signature(graph)
    cost = onnx_cost(graph, {name: (1, *value.shape[1:]) for name, value in inputs.items()})

    files = [child.store.publish_bytes(data, "model.onnx")]
    labels, asset = workload.labels(), labels_file(child.data.task)
    if labels is not None and asset is not None:
        files.append(child.store.publish_bytes(canonical_json(list(labels)), asset))
    missing = child.data.inputs_with_gaps(specs)
    if missing:
        files.append(child.store.publish_bytes(canonical_json(missing), MISSING_VALUES))
    files += _text_files(child, workload, specs)
    variant = Variant(
        name=form_name(parent.name, "fp32"),
        stage="export",
        format="onnx",
        files=tuple(files),
        inputs=specs,
        outputs=answers,
        runtime=RuntimeSpec(intra_op_threads=child.spec["threads"]),
    )
    values = {
        "variants": {variant.digest: {"name": variant.name, **asdict(cost), "bytes": len(data)}},
        "opset": OPSET,
        "parity": [asdict(p) for p in parity],
    }
    return Result(variants=(variant,), values=values)


def _decoder(child: Child, model: CausalDecoder, workload: Workload, tokens: torch.Tensor) -> Result:
    """A model that continues text: its file has keys and values going in and out."""
    parent = child.inputs["parent"]
    child.progress(0.3, f"writing {parent.name}")
    data, form = write_decoder(model), decoder_form(model)
    child.progress(0.6, "comparing with ONNX Runtime")
    parity = check_decoder_parity(model, data, form, tokens, tolerance=child.spec["tolerance"])
    tokenizer, template = causal_assets(workload)
    files = {"model.onnx": data, DECODER: form.to_json(), TOKENIZER: tokenizer.encode()}
    if template is not None:
        files[CHAT_TEMPLATE] = template.encode()
    variant = Variant(
        name=form_name(parent.name, "fp32"),
        stage="export",
        format="onnx",
        files=tuple(child.store.publish_bytes(content, name) for name, content in files.items()),
        inputs=form.inputs,
        outputs=form.outputs,
        runtime=RuntimeSpec(intra_op_threads=child.spec["threads"]),
    )
    cost = {"name": variant.name, "parameters": parameter_count(model), "macs": None, "bytes": len(data)}
    values = {"variants": {variant.digest: cost}, "opset": OPSET, "parity": [asdict(p) for p in parity]}
    return Result(variants=(variant,), values=values)


def _text_files(child: Child, workload: Workload, inputs: tuple[TensorSpec, ...]) -> list[FileEntry]:
    """The tokenizer, if the workload has one, where its ids go, and the names of what is answered for each word."""
    found = own_tokenizer(workload)
    if found is None:
        return []
    source, texts = found
    if len(inputs) != 1:
        raise WorkloadError(
            f"{workload.ref.path} has a tokenizer() and {len(inputs)} inputs, {[spec.name for spec in inputs]}; "
            "text becomes one input"
        )
    labels = workload.labels() if child.data.task == "places" else None
    told = {"input": inputs[0].name, "texts": texts} | ({"words": True} if labels else {})
    where = TextInput.model_validate(told)
    files = [
        child.store.publish_bytes(source.encode(), TOKENIZER),
        child.store.publish_bytes(where.to_json(), TEXT_INPUT),
    ]
    if labels:
        files.append(child.store.publish_bytes(canonical_json(list(labels)), ONE_PER_WORD))
    return files
