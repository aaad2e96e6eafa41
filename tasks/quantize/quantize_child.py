"""The quantize stage in its process. Imports no torch unless the workload has to be asked for rows or scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_registry.cpu_class import cpu_class, sums_saturate
from model_registry.decoder_form import TOKENS, DecoderForm
from model_registry.form_name import form_name, name_parts
from model_registry.manifest import FileEntry
from model_registry.text_input import DECODER
from model_registry.variant import Variant
from tasks.quantize.agreement import top_answers
from tasks.quantize.calibration import Feeds, check_finite, choose_rows
from tasks.quantize.calibration_drift import compare_rows
from tasks.quantize.decoder_forms import decoder_forms, decoder_scores
from tasks.quantize.metric_drop import drop_of_agreement, drop_of_metric
from tasks.quantize.quantized_forms import Control, FormBuilder, QuantizedForm, Quantizing
from tasks.quantize.raw_rows import read_rows
from tasks.quantize.static_recipe import STATIC
from tasks.running.child import Child, Result
from tasks.running.errors import WorkloadError
from tasks.running.splits import TARGET, read_split
from tasks.running.task_kind import CHOICES

_COMPARED_BYTES = 256 << 20
"""Training data larger than this are not fetched just to be compared with the calibration rows."""
_DECODER_ROWS = 40
"""Calibration rows that a decoder's forms are made with, at most."""
_COMPARED_ROWS = 4
"""Rows on which a decoder's forms are compared with their parent: enough to see that they answer alike."""
_compared: dict[str, list[str]] = {}
"""Of the data that was looked at last, by fingerprint."""


def main(child: Child) -> Result:
    """Quantize the parent with each method that suits its graph, and publish the files."""
    spec, parent = child.spec, child.inputs["parent"]
    label = child.extra.get("label") or name_parts(parent.name)[0]
    if any(file.path == DECODER for file in parent.files):
        return _decoder(child, label)
    calibrated = not STATIC.isdisjoint(spec["methods"])
    file = child.store.fetch_bytes(parent.file("model.onnx"))
    feeds, rows = _calibration_rows(child, stratify=calibrated and child.data.task in CHOICES)
    wanted = top_answers(file, feeds)
    check_finite(wanted, rows)
    control, warnings = _control(child, file)
    if calibrated:
        warnings = [*_compare_with_training(child), *warnings]

    builder = FormBuilder(
        file,
        feeds,
        wanted,
        Quantizing.of(spec),
        folder=child.workdir,
        control=control,
        seen=_training_ids(child) if spec["vocabulary"] == "train" else None,
    )
    forms = builder.forms(lambda fraction, method: child.progress(fraction, f"{method} of {parent.name}"))

    made = [(_publish(child, form, form_name(label, form.method)), form) for form in forms]
    values = {
        **builder.notes,
        "variants": {variant.digest: {"name": variant.name, **form.facts} for variant, form in made},
        "warnings": [*warnings, *builder.notes["warnings"]],
        "cpu_class": cpu_class(),
        "reduce_range": sums_saturate(cpu_class()),
        "calibration_rows": len(rows) if calibrated else 0,
    }
    roles = {form.method: variant.digest for variant, form in made}
    return Result(variants=tuple(variant for variant, _ in made), values=values, roles=roles)


def _decoder(child: Child, label: str) -> Result:
    """The small forms of a model that continues text."""
    spec, parent = child.spec, child.inputs["parent"]
    file = child.store.fetch_bytes(parent.file("model.onnx"))
    form = DecoderForm.from_json(child.store.fetch_bytes(parent.file(DECODER)))
    tokens = _read(child, "calibration")[0][TOKENS][: min(_DECODER_ROWS, spec["calibration_samples"])]
    wanted = decoder_scores(file, form, tokens[:_COMPARED_ROWS])
    check_finite(wanted, np.arange(len(wanted)))
    forms, skipped = decoder_forms(
        file,
        form,
        tokens,
        wanted,
        spec["methods"],
        spec["kv_cache"],
        lambda fraction, method: child.progress(fraction, f"{method} of {parent.name}"),
        spec["max_bytes"],
    )
    made = [(_publish(child, each, form_name(label, each.method)), each) for each in forms]
    learned = not {"weights4", "mixed", "dynamic"}.isdisjoint(spec["methods"]) or spec["kv_cache"] == "int8"
    values = {
        "skipped": skipped,
        "variants": {variant.digest: {"name": variant.name, **each.facts} for variant, each in made},
        "warnings": [],
        "cpu_class": cpu_class(),
        "reduce_range": "dynamic" in spec["methods"] and sums_saturate(cpu_class()),
        "calibration_rows": len(tokens) if learned else 0,
    }
    roles = {each.method: variant.digest for variant, each in made}
    return Result(variants=tuple(variant for variant, _ in made), values=values, roles=roles)


def _calibration_rows(child: Child, *, stratify: bool) -> tuple[Feeds, NDArray[np.int64]]:
    """The calibration rows that are used, and their numbers in the split: drawn only where ranges need them."""
    feeds, targets = _read(child, "calibration")
    rows = np.arange(min(len(targets), child.spec["calibration_samples"]))
    if not STATIC.isdisjoint(child.spec["methods"]):
        rows = choose_rows(targets, child.spec["calibration_samples"], stratify=stratify, seed=child.job.seed)
    return {name: values[rows] for name, values in feeds.items()}, rows


def _control(child: Child, file: bytes) -> tuple[Control | None, list[str]]:
    """By what accuracy control decides, if it is asked for, and warnings."""
    asked = child.spec["accuracy_control"]
    if asked is None:
        return None, []
    feeds, targets = _read(child, "validation")
    outputs = top_answers(file, feeds)
    metric, warnings = child.data.metric.name, []
    try:
        drop = drop_of_metric(child.data, child.job.workload, outputs, targets)
    except WorkloadError as error:
        warnings.append(f"accuracy control counts changed answers, not the metric: {error.message}")
        metric, drop = "agreement", drop_of_agreement(outputs)
    return Control(feeds, outputs, drop, metric, asked["max_drop"], asked["samples"]), warnings


def _read(child: Child, split: str) -> tuple[Feeds, np.ndarray]:
    stored = child.extra.get("rows" if split == "calibration" else split)
    return read_rows(
        child.store,
        child.inputs["parent"].inputs,
        split,
        stored=FileEntry.model_validate(stored) if stored else None,
        data=child.data,
        workload=child.job.workload,
    )


def _training_ids(child: Child) -> Feeds:
    """The parent's inputs of whole numbers, as the training split has them."""
    columns = read_split(child.store, child.data, "train")
    names = [spec.name for spec in child.inputs["parent"].inputs if spec.datatype in ("INT64", "INT32")]
    return {name: columns[name] for name in names if name in columns and columns[name].dtype.kind in "iu"}


def _compare_with_training(child: Child) -> list[str]:
    """Warnings about the calibration split: they depend on the data alone, so a process looks once."""
    if child.data.fingerprint not in _compared:
        _compared.clear()
        _compared[child.data.fingerprint] = _compare(child)
    return _compared[child.data.fingerprint]


def _compare(child: Child) -> list[str]:
    sizes = {split.name: split.file.size for split in child.data.splits}
    if sizes.get("train", _COMPARED_BYTES + 1) > _COMPARED_BYTES:
        return []
    train, ours = (read_split(child.store, child.data, name) for name in ("train", "calibration"))
    train.pop(TARGET, None)
    return compare_rows(train, ours)


def _publish(child: Child, form: QuantizedForm, name: str) -> Variant:
    parent = child.inputs["parent"]
    kept = (f for f in parent.files if f.path.startswith("assets/") and f.path not in form.assets)
    made = (child.store.publish_bytes(data, path) for path, data in form.assets.items())
    return Variant(
        name=name,
        stage="quantize",
        format="onnx",
        files=(child.store.publish_bytes(form.data, "model.onnx"), *kept, *made),
        inputs=parent.inputs,
        outputs=parent.outputs,
        runtime=parent.runtime.model_copy(update={"cpu_class": None if form.any_cpu else cpu_class()}),
    )
